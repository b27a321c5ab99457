"""Parts that an adapter trained in full, such as a classification head, apart from its factors.

    base.load_state_dict(load_file("head.safetensors"), strict=False)      and the factors on that base

compute what the adapter does. Engines serve the factors; who reads their hidden states applies the head.
"""

from dataclasses import replace

from torch import Tensor

from ...errors import EngineError
from ...variants.table import SAVED
from ..contents import Contents
from ..inspection import Looked
from ..keys import PREFIX, plain_keys, split_key, unwrapped


def split(files: Contents) -> tuple[Contents, dict[str, Tensor]]:
    """Return an adapter without the parts that it trained in full, and these by the names of the base's parameters.

    Raises EngineError where it trained none, or nothing else.
    """
    whole = {key: name for key, name in plain_keys(files.tensors).items() if _is_whole(name)}
    if not files.config.modules_to_save or not whole:
        raise EngineError(
            f"{files.source.name} trained no part in full (modules_to_save), so there is none to split off: leave "
            "split_head= out."
        )
    factors = {key: each for key, each in files.tensors.items() if key not in whole}
    if not factors:
        raise EngineError(f"{files.source.name} holds no factors, but parts in full alone: merge it into its base.")
    parts = {unwrapped(name.removeprefix(PREFIX))[0]: files.tensors[key] for key, name in whole.items()}
    return replace(files, config=files.config.copy(modules_to_save=None), tensors=factors), parts


def without_parts(looked: Looked) -> Looked:
    """Return what is seen of an adapter as if it had trained no part in full."""
    kept = {key: each for key, each in looked.tensors.items() if not _is_whole(plain_keys([key]).get(key, ""))}
    return replace(looked, config={**looked.config, "modules_to_save": None}, tensors=kept)


def _is_whole(name: str) -> bool:
    return bool(name) and split_key(name)[2] == SAVED.name
