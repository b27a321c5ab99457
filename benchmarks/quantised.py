"""What merging into a quantised base keeps of what training gained: MiniLM in four and in eight bits, on real ratings.

The job of `accuracy`, on a base that bitsandbytes packed (NF4, or eight bits). Each trained model is measured with its
adapter live, without its LoRA (the trained head stays), and merged: into plain bfloat16, into the packed format rounded
to the nearest, and with error feedback from 512 of the training entries. Beside accuracy on the held-out entries: in
how many of them the model decides as with the live adapter, and what the layers make of the wanted change of outputs.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BitsAndBytesConfig, set_seed

from hf_lora import LoRAModel

from .accuracy import CONFIG, TITLE, Job, quietly, trainer_of
from .measure import Findings, Options, Row
from .ratings import Rated, base

RATE = 2e-3  # plain LoRA's best of `accuracy`
CALIBRATION, BATCH = 512, 128
FORMATS: dict[str, Callable[[], BitsAndBytesConfig]] = {
    "NF4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
}
LIVE = "adapter live"


def run(options: Options) -> Findings:
    """Train on every packed base with every seed, merge in every way, and return a row a way."""
    smoke = options.scale == "smoke"
    job = Job(entries=60, epochs=1, seeds=(0,)) if smoke else Job()
    data = job.data()
    print(f"\n{TITLE}: {len(data[0])} entries to train on, {len(data[1])} held out, {job.epochs:g} epoch(s)")
    rows: list[Row] = []
    for name in FORMATS:
        found = [_of_seed(name, seed, data, job) for seed in job.seeds]
        rows += [_row(name, arm, [each[arm] for each in found]) for arm in found[0]]
    live = {row["cell"]: row["accuracy"] for row in rows if row["arm"] == LIVE}
    for row in rows:
        row["ratio"] = round(row["accuracy"] / max(live[row["cell"]], 1e-9), 6)
    return Findings(rows, _summary(rows))


def _of_seed(name: str, seed: int, data: tuple[Rated, Rated], job: Job) -> dict[str, Row]:
    set_seed(seed)
    model = LoRAModel.from_pretrained(base(), CONFIG, num_labels=2, quantization_config=FORMATS[name]())
    quietly(trainer_of(model, RATE, seed, data, job.epochs).train)
    held, calibration = _batches(data[1]), [batch for batch, _ in _batches(data[0][:CALIBRATION])]
    report = model.eval().merge_report(requantize=True, calibration=calibration)
    kept = report.total_kept
    assert kept is not None
    live = _decisions(copy.deepcopy(model), held)
    ways: dict[str, tuple[Callable[[Any], Any], Row]] = {
        LIVE: (lambda m: m, {}),
        "without its LoRA": (_without, {}),
        "merged, bfloat16": (lambda m: m.merge_and_unload(dtype=torch.bfloat16), {}),
        "merged, rounded to the nearest": (
            lambda m: m.merge_and_unload(requantize=True), {"kept": kept.nearest, "lost": kept.nearest_lost},
        ),
        "merged, error feedback": (
            lambda m: m.merge_and_unload(requantize=True, calibration=calibration),
            {"kept": kept.fed_back, "lost": kept.lost},
        ),
    }  # fmt: skip
    found: dict[str, Row] = {}
    for arm, (change, figures) in ways.items():
        changed = change(copy.deepcopy(model))
        size = sum(t.nbytes for t in changed.state_dict().values() if isinstance(t, Tensor))
        right, decided = _decisions(changed, held)
        alike = float((decided == live[1]).float().mean())
        found[arm] = {"accuracy": float(right.float().mean()), "alike": alike, "bytes": size, **figures}
        print(
            f"  {name}, seed {seed}: {arm:<32}{found[arm]['accuracy']:>8.2%}, {alike:.2%} as live", figures, flush=True
        )
    return found


def _row(name: str, arm: str, found: list[Row]) -> Row:
    mean = {key: round(statistics.mean(each[key] for each in found), 6) for key in found[0]}
    told = [key for key in ("accuracy", "alike", "kept", "lost") if key in found[0]]
    per_seed = {f"{key}_per_seed": [round(each[key], 6) for each in found] for key in told}
    return {"cell": f"{TITLE}, {name}", "arm": arm, **mean, "bytes": int(mean["bytes"]), **per_seed}


def _without(model: Any) -> Any:
    """Return a model with the head that was trained and none of the products."""
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("lora_B"):
            nn.init.zeros_(parameter)
    return model


def _batches(rated: Rated) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Return batches of entries of one length in tokens, so that nothing is padded, and their labels."""
    tokenizer = AutoTokenizer.from_pretrained(base())
    encoded = sorted(((tokenizer(text)["input_ids"], label) for text, label in rated), key=lambda each: len(each[0]))
    found = []
    for _, group in itertools.groupby(encoded, key=lambda each: len(each[0])):
        alike = list(group)
        for start in range(0, len(alike), BATCH):
            ids, labels = zip(*alike[start : start + BATCH], strict=True)
            found.append(({"input_ids": torch.tensor(ids)}, torch.tensor(labels)))
    return found


def _decisions(model: Any, batches: list[tuple[dict[str, Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
    """Return which entries a model tells rightly, and what it decides of each."""
    with torch.inference_mode():
        decided = [model.eval()(**batch).logits.argmax(-1) for batch, _ in batches]
    labels = torch.cat([labels for _, labels in batches])
    return torch.cat(decided) == labels, torch.cat(decided)


def _summary(rows: list[Row]) -> list[str]:
    told = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        by_arm = {row["arm"]: row for row in rows if row["cell"] == cell}
        gain = by_arm[LIVE]["accuracy"] - by_arm["without its LoRA"]["accuracy"]
        for arm in [arm for arm in by_arm if arm.startswith("merged")]:
            own = by_arm[arm]["accuracy"] - by_arm["without its LoRA"]["accuracy"]
            share = f"{own / gain:.0%}" if gain else "?"
            told.append(f"{cell}, {arm}: {100 * own:+.2f} points of the {100 * gain:.2f} that LoRA gained ({share}).")
    return told
