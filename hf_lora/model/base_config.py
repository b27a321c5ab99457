"""The config of a base: the caller's own, or the one in its folder or repo, which is read once."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import transformers
from transformers import PreTrainedConfig

from ..files.sources import HUB_KWARGS


class BaseConfig:
    """The config of the base of a name. kwargs: those of the model's from_pretrained; `config` among them counts."""

    def __init__(self, name: str, kwargs: Mapping[str, Any]) -> None:
        self.name, self.given = name, kwargs.get("config")
        self.hub = {k: kwargs[k] for k in (*HUB_KWARGS, "trust_remote_code") if kwargs.get(k) is not None}

    @cached_property
    def whole(self) -> PreTrainedConfig:
        """The config itself. Raises what AutoConfig does where it cannot be read."""
        if isinstance(self.given, PreTrainedConfig):
            return self.given
        return transformers.AutoConfig.from_pretrained(self.name, **self.hub)

    def setting(self, key: str) -> Any:
        """Return a setting, None where there is none or the config cannot be read; runs no code of the repo."""
        if self.given is None and "whole" not in vars(self):
            hub = {k: v for k, v in self.hub.items() if k in HUB_KWARGS}
            try:
                return PreTrainedConfig.get_config_dict(self.name, **hub)[0].get(key)
            except (OSError, ValueError):  # loading says what is wrong
                return None
        return getattr(self.whole if self.given is None else self.given, key, None)
