"""The main job on real input: a pretrained BERT learns the sentiment of words from human ratings, by LoRA."""

from __future__ import annotations

from .check import check, check_in_fresh_process
from .job import run
from .results import DemoOptions, DemoResults, Scores

__all__ = [
    "DemoOptions",
    "DemoResults",
    "Scores",
    "check",
    "check_in_fresh_process",
    "run",
]
