"""What an import takes, each time in a fresh process, on top of what the process has imported already.

`import transformers` alone loads hardly anything. Who has a model has its class, hence most of Transformers, which
whatever wraps models would otherwise be the first to load.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial

from .measure import Row, interleave

STATEMENTS = {"PEFT": "import peft", "hf_lora": "import hf_lora", "hf_lora, LoRAModel": "from hf_lora import LoRAModel"}
CELLS = [
    ("import torch, transformers", STATEMENTS),
    ("import torch; from transformers import BertModel", STATEMENTS),
]
SMOKE = [("import sys", {"json": "import json", "decimal": "import decimal"})]

_TIMED = """{ground}
from time import perf_counter
start = perf_counter()
{statement}
print(perf_counter() - start)"""


def measure(ground: str, statements: Mapping[str, str], rounds: int) -> list[Row]:
    """Return one row a statement, by name; see `measure.interleave`. ground: what is imported before, untimed.

    Every arm has its bytecode, as an installed package has: one run of each that does not count writes it.
    """
    with tempfile.TemporaryDirectory() as bytecode:
        arms = {name: partial(_seconds, ground, statement, bytecode) for name, statement in statements.items()}
        for arm in arms.values():
            arm()
        return interleave(arms, rounds)


def _seconds(ground: str, statement: str, bytecode: str) -> float:
    code = _TIMED.format(ground=ground, statement=statement)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )  # fmt: skip
    return float(run.stdout)
