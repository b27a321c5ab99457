"""Where a metric's `evaluate` module comes from: the Hub, this package, or a file of the user's.

The rule: with HF_HUB_OFFLINE or HF_EVALUATE_OFFLINE set, the shipped ones, at once. Otherwise the Hub is asked once
for each metric, for a few seconds; where one of them cannot be had or does not work here, all are the shipped ones.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..._version import __version__
from ...errors import ConfigError, HubError, HubNotFoundError, MissingExtraError
from ...files.hub_calls import FAILURES, Request, as_hub_error

if TYPE_CHECKING:
    from evaluate import EvaluationModule

__all__ = ["SHIPPED", "FoundMetric", "Source", "load", "origins", "unknown"]

SHIPPED = (
    "accuracy",
    "exact_match",
    "f1",
    "mae",
    "matthews_correlation",
    "mse",
    "pearsonr",
    "precision",
    "recall",
    "rouge",
    "spearmanr",
)
OWN = f"hf_lora {__version__}"
Source = Literal["auto", "hub", "shipped"]
_TIMEOUT = 3.0  # seconds for the Hub's first answer
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class FoundMetric:
    """A module's file, in words where it is from, and whether that is the Hub."""

    path: Path
    told: str
    of_hub: bool = False

    def module(self, config_name: str | None = None) -> EvaluationModule:
        """Return the module, which holds its rows in memory, so that processes share no file.

        Raises MissingExtraError where a package that it imports is not installed.
        """
        import evaluate  # takes a second, and whoever only trains needs none of it

        try:
            return evaluate.load(str(self.path), config_name=config_name, keep_in_memory=True)
        except ImportError as error:
            raise MissingExtraError(
                f"the metric {self.path.stem!r} ({self.told}) needs packages that are not here; "
                f'pip install "hf-lora[metrics]" brings those of the shipped metrics. {error}'
            ) from error


def load(name: str) -> EvaluationModule:
    """Return a metric of this package, ready to `compute(predictions=..., references=...)`.

    The same as `evaluate.load` with the path of its folder; no network is asked. Raises ConfigError for a name that is
    not in SHIPPED, MissingExtraError without scikit-learn.

    >>> load("accuracy").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'accuracy': 0.75}
    """
    if name not in SHIPPED:
        raise ConfigError(f"hf_lora ships no metric {name!r}{_near(name)}, only {', '.join(SHIPPED)}.")
    return _shipped(name).module()


def origins(names: Sequence[str], source: Source) -> tuple[dict[str, FoundMetric], str | None]:
    """Return where each metric comes from, and why not from the Hub where it was asked in vain.

    A name is a shipped metric, one of the Hub ("bleu", or "user/metric"), or the path of a module (with ".py", or
    beginning with "." or "/"). Raises ConfigError for a name that nobody knows, HubError where the Hub cannot be asked
    for one that is not shipped.
    """
    local = {name: _local(name) for name in names if _is_path(name)}
    others = [name for name in names if name not in local]
    if source == "shipped" or (source == "auto" and _offline()):
        why = (
            "source='shipped' was asked for" if source == "shipped" else "HF_HUB_OFFLINE or HF_EVALUATE_OFFLINE is set"
        )
        return local | _all_shipped(others, HubError(why)), None
    try:
        return local | {name: _of_hub(name) for name in others}, None
    except (HubError, MissingExtraError, ConfigError) as error:
        if source == "hub":
            raise
        return local | _all_shipped(others, error), str(error)


def unknown(name: str) -> ConfigError:
    """Return the error for a name that neither this package nor the Hub knows."""
    return ConfigError(f"no metric is called {name!r}, here or on the Hub{_near(name)}; here are {', '.join(SHIPPED)}.")


def _all_shipped(names: Sequence[str], why: Exception) -> dict[str, FoundMetric]:
    for name in names:
        if name not in SHIPPED:
            if isinstance(why, (HubNotFoundError, ConfigError, MissingExtraError)):
                raise why
            raise HubError(
                f"the metric {name!r} is not shipped with hf_lora{_near(name)}, and the Hub was not asked or did not "
                f"answer: {why}. Shipped are {', '.join(SHIPPED)} and perplexity."
            ) from why
    return {name: _shipped(name) for name in names}


def _shipped(name: str) -> FoundMetric:
    return FoundMetric(Path(__file__).parent / "shipped" / name / f"{name}.py", OWN)


def _of_hub(name: str) -> FoundMetric:
    """Return a metric of the Hub, downloaded at its newest commit. Raises HubError, ConfigError."""
    repo = name if "/" in name else f"evaluate-metric/{name}"
    file = f"{repo.rpartition('/')[2]}.py"
    try:
        url = huggingface_hub.hf_hub_url(repo, file, repo_type="space")
        commit = huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT).commit_hash or "main"
        folder = huggingface_hub.snapshot_download(repo, repo_type="space", allow_patterns="*.py", revision=commit)
    except FAILURES as error:
        found = as_hub_error(error, Request(repo))
        if isinstance(found, HubNotFoundError) or isinstance(error, RemoteEntryNotFoundError):
            raise unknown(name) from found
        raise found from None
    return FoundMetric(Path(folder) / file, f"the Hub's {repo} at {commit[:7]}", of_hub=True)


def _local(name: str) -> FoundMetric:
    path = Path(name).expanduser()
    file = path / f"{path.name}.py" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{name} is no file of a metric (a folder holds it under the folder's name, with .py).")
    return FoundMetric(file, "a file of yours")


def _is_path(name: str) -> bool:
    return name.endswith(".py") or name.startswith((".", "/", "~")) or Path(name).is_absolute()


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), (*SHIPPED, "perplexity"), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_EVALUATE_OFFLINE", "").upper() in _TRUE
