"""The table of variants and kinds in docs/variants.md is what the laws run over and what PEFT computes.

    python -m tests.test_matrix    writes it anew

Forward, merging, saving and loading, compiling and gradient checkpointing of every cell are tests of test_laws.py; here
each cell's file is opened by PEFT, and PEFT's by us, on the same base.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import peft
import pytest
import torch

from hf_lora import LoRAModel

from .cases import FIRST, KIND_CASES, PACKED, PAIRS, VARIANTS, adapted, example, move, network

PAGE = Path(__file__).parents[1] / "docs" / "variants.md"
START, END = "<!-- made by python -m tests.test_matrix -->", "<!-- end -->"
YES, OURS, REFUSED = "yes", "ours", "-"
KINDS = [kind for kind in KIND_CASES if kind not in PACKED or kind in FIRST]


def opened_both_ways(kind: str, variant: str) -> bool:
    """Whether PEFT computes with our file what we do, and we with PEFT's what it does."""
    model, x = adapted(kind, variant), example(kind)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.save_pretrained(f"{folder}/ours")
        try:
            there = peft.PeftModel.from_pretrained(network(kind), f"{folder}/ours").eval()
            if not torch.allclose(there(x), model(x), atol=1e-4):
                return False
            config = peft.PeftConfig.from_pretrained(f"{folder}/ours")
            config.inference_mode = False
            made = peft.get_peft_model(network(kind), config).eval()
            move(made, scale=0.2)
            made.save_pretrained(f"{folder}/theirs")
            here = LoRAModel.from_pretrained(f"{folder}/theirs", base_model=network(kind))
            return torch.allclose(here(x), made(x), atol=1e-4)
        except Exception:  # PEFT raises whatever it does not know
            return False


def table() -> str:
    """Return the table, in Markdown: a row for each kind, a column for each variant."""
    head = ["layer", *(f"`{name}`" for name in VARIANTS)]
    lines = [head, ["---"] * len(head)]
    for kind in KINDS:
        cells = [REFUSED if (kind, v) not in PAIRS else YES if opened_both_ways(kind, v) else OURS for v in VARIANTS]
        lines.append([kind, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@pytest.mark.skipif(peft.__version__ != "0.21.2", reason="the page tells of PEFT 0.21.2")
def test_the_documented_table_is_what_is_tested_and_what_peft_computes() -> None:
    told = PAGE.read_text("utf-8").partition(START)[2].partition(END)[0].strip()
    assert told == table()


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(START)
    PAGE.write_text(f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}", "utf-8")
