"""What every test gets: no network, no chatter, the same random numbers each time."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers.utils import logging

from .hub import hub  # noqa: F401 (a fixture)

_frozen: dict[str, int] = {}
gc.set_threshold(20_000, 20, 20)  # a model is thousands of objects
logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny tensors: a second thread costs up to twenty times what it brings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=200, metavar="N", help="try so many damaged adapter folders")


@pytest.fixture(autouse=True)
def _imports_are_no_garbage() -> None:
    """Spare what is imported the collections of garbage: a training does some, half a second each with all of that."""
    if len(sys.modules) != _frozen.get("modules"):
        gc.collect()
        gc.freeze()
        _frozen["modules"] = len(sys.modules)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty folder: no `gpt2` or `org/base` beside the checkout is taken for what a test names so."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
