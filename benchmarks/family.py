"""Which variant learns best: MiniLM on real ratings, each variant at its own best learning rate, with three seeds.

Every arm trains on the same third of the entries for as many epochs. Its rate is the best of five around the suggested
one, chosen on a part of the training entries with seed 0, each judged together with its neighbours; where the best is
the first or the last, further ones are tried. Then it trains with each seed (head, factors, order) and tells the
held-out entries. Ranks are such that arms train about as many parameters, where a variant can. "2r, truncated" trains
at twice the rank and is truncated after.

Figures are shares of entries that are told rightly. `pace` is the time of a short training of 20 steps by the stock
Trainer, as a ratio to plain LoRA's, in turns. A difference is noise where it is below twice its standard error:
of the seeds' means and of the held-out entries' number together.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from hf_lora import LoRAConfig, LoRAModel, suggested_learning_rate, truncate
from hf_lora.variants.table import formula_of

from .accuracy import quietly, score, trainer_of
from .measure import Findings, Options, Row, interleave
from .ratings import Rated, base, ratings, split
from .saved import saved_bytes

R = 8
PLAIN, FULL = "LoRA", "full fine-tuning"
DONE = Path(__file__).parent / "results" / "family-parts.json"  # arms that an interrupted run has measured


@dataclass(frozen=True)
class Arm:
    """One way to train. settings: of its LoRAConfig, None for all weights; to: the rank it is truncated to after."""

    name: str
    settings: dict[str, Any] | None = field(default_factory=dict)
    to: int | None = None

    @property
    def rate(self) -> float:
        """The learning rate in the middle of those that are tried."""
        return 2e-4 if self.settings is None else suggested_learning_rate(self.config)

    @property
    def config(self) -> LoRAConfig:
        """The adapter's config."""
        own = self.settings or {}
        scaled = {} if "lora_alpha" in formula_of(own).lacks else {"lora_alpha": 2 * R}
        return LoRAConfig(target_modules="all-linear", task_type="SEQ_CLS", **{"r": R, **scaled, **own})

    def model(self, seed: int) -> Any:
        """Return the pretrained model with a new head, as it starts to train."""
        set_seed(seed)
        if self.settings is None:
            return AutoModelForSequenceClassification.from_pretrained(base(), num_labels=2)
        config = self.config
        batches = _batches(seed) if config.init_lora_weights in ("eva", "lora_ga") else None
        return LoRAModel.from_pretrained(base(), config, num_labels=2, data=batches)


ARMS = (
    Arm(FULL, None),
    Arm(PLAIN),
    Arm("rsLoRA", {"use_rslora": True, "lora_alpha": 2 * math.sqrt(R)}),
    Arm("DoRA", {"use_dora": True}),
    Arm("HiRA", {"use_hira": True}),
    Arm("VeRA", {"use_vera": True, "r": 256}),
    Arm("ShareLoRA", {"use_sharelora": True}),
    Arm("PiSSA", {"init_lora_weights": "pissa"}),
    Arm("OLoRA", {"init_lora_weights": "olora"}),
    Arm("gaussian start", {"init_lora_weights": "gaussian"}),
    Arm("orthogonal start", {"init_lora_weights": "orthogonal"}),
    Arm("MiLoRA", {"init_lora_weights": "milora"}),
    Arm("MiCA", {"init_lora_weights": "mica", "r": 2 * R, "lora_alpha": 4 * R}),
    Arm("EVA", {"init_lora_weights": "eva"}),
    Arm("LoRA-GA", {"init_lora_weights": "lora_ga"}),
    Arm("LoRA-FA", {"use_lora_fa": True, "r": 2 * R, "lora_alpha": 4 * R}),
    Arm("LoRA-XS", {"use_lora_xs": True, "r": 78}),  # r^2 is about R (in + out) for 384 channels
    Arm("AdaLoRA", {"use_adalora": True, "r": R + R // 2, "target_r": R, "tinit": 20, "tfinal": 60}),
    Arm("LoRA, r/2", {"r": R // 2, "lora_alpha": R}),
    Arm("LoRA, truncated to r/2", {}, to=R // 2),
    Arm("LoRA, 2r", {"r": 2 * R, "lora_alpha": 4 * R}),
    Arm("LoRA, 2r, truncated to r", {"r": 2 * R, "lora_alpha": 4 * R}, to=R),
)


@dataclass(frozen=True)
class Job:
    """What all arms share. share: every which entry of the training ones is trained on."""

    share: int = 3
    epochs: float = 3.0
    seeds: tuple[int, ...] = (0, 1, 2)
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    arms: Sequence[Arm] = ARMS

    def data(self) -> tuple[Rated, Rated]:
        """Return (the entries to train on, the ones held out)."""
        train, test = split(ratings(), seed=0)
        return train[:: self.share], test if self.share < 50 else test[::20]


def run(options: Options) -> Findings:
    """Measure every arm, those that an interrupted run has measured left out, and say what is noise."""
    is_smoke = options.scale == "smoke"
    job = Job(share=100, epochs=1, seeds=(0,), factors=(1.0,), arms=ARMS[:2] + ARMS[-1:]) if is_smoke else Job()
    data = job.data()
    print(f"\nMiniLM-L6: {len(data[0])} entries to train on, {len(data[1])} held out, {job.epochs:g} epoch(s)")
    done: dict[str, Row] = {} if is_smoke or not DONE.exists() else json.loads(DONE.read_text())
    for arm in job.arms:
        if arm.name not in done:
            done[arm.name] = _measured(arm, job, data)
            if not is_smoke:
                DONE.write_text(json.dumps(done, indent=1) + "\n")
    rows = [done[arm.name] for arm in job.arms]
    plain, paces = done[PLAIN], _paces(job, data, 1 if is_smoke else options.rounds, options)
    for row in rows:
        row |= {"pace": paces[row["arm"]]}
        row |= {"ratio": round(row["accuracy"] / plain["accuracy"], 6), "noise": _is_noise(row, plain, len(data[1]))}
    DONE.unlink(missing_ok=True)
    return Findings(rows, summary(rows))


def _measured(arm: Arm, job: Job, data: tuple[Rated, Rated]) -> Row:
    inner = split(data[0], seed=0)
    tried: dict[float, float] = {}
    wanted = [factor * arm.rate for factor in job.factors]
    while wanted:
        rate = wanted.pop(0)
        tried[rate] = _run(arm, rate, job.seeds[0], inner, job)["accuracy"]
        best = max(tried, key=lambda each: tried[each])
        if not wanted and len(tried) > 2 and len(tried) < 9 and best in (min(tried), max(tried)):
            wanted = [best / 2 if best == min(tried) else best * 2]
    best = chosen(tried)
    runs = [_run(arm, best, seed, data, job) for seed in job.seeds]
    found = [each["accuracy"] for each in runs]
    row: Row = {
        "cell": "MiniLM-L6, the sentiment of words",
        "arm": arm.name,
        "accuracy": round(statistics.mean(found), 6),
        "deviation": round(statistics.stdev(found), 6) if len(found) > 1 else 0.0,
        "per_seed": [round(each, 6) for each in found],
        "learning_rate": best,
        "validation": {f"{rate:g}": round(value, 6) for rate, value in sorted(tried.items())},
        **{key: runs[0][key] for key in ("trained", "kept_bytes", "file_bytes")},
    }
    print(
        f"  {row['arm']:<26}{row['accuracy']:>8.2%} +-{row['deviation']:.2%}  {row['trained']:>10,} trained", flush=True
    )
    return row


def chosen(tried: dict[float, float]) -> float:
    """Return the rate that is best together with its two neighbours: the best alone may be the last before it breaks.

    tried: a rate's share of entries told rightly. The lowest and the highest are only neighbours, where there are more.
    """
    rates = sorted(tried)
    if len(rates) < 3:
        return max(tried, key=lambda each: tried[each])
    around = {rates[at]: sum(tried[rate] for rate in rates[at - 1 : at + 2]) for at in range(1, len(rates) - 1)}
    return max(around, key=lambda each: around[each])


def _run(arm: Arm, rate: float, seed: int, data: tuple[Rated, Rated], job: Job) -> dict[str, Any]:
    model = arm.model(seed)
    trainer = trainer_of(model, rate, seed, data, job.epochs)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(32)])  # type: ignore[index]
    known = [*model.parameters(), *model.buffers(), *batch.values()]
    kept = saved_bytes(lambda: model(**batch).loss, iter(known))
    quietly(trainer.train)
    if arm.to is not None:
        truncate(model, rank=arm.to)
    state = model.state_dict() if arm.settings is None else model.get_adapter_state_dict()
    stored = sum(tensor.nbytes for tensor in state.values())
    return {
        "accuracy": score(trainer),
        "trained": trained,
        "kept_bytes": kept,
        "file_bytes": stored,
    }


def _paces(job: Job, data: tuple[Rated, Rated], rounds: int, options: Options) -> dict[str, float]:
    """Return each arm's time for 20 steps as a ratio to plain LoRA's; what makes the model does not count."""
    few = data[0][: 20 * 32], data[1][:32]

    def seconds(arm: Arm) -> float:
        if "tinit" in (arm.settings or {}):  # a budget that falls within these steps
            arm = replace(arm, settings={**(arm.settings or {}), "tinit": 2, "tfinal": 10})
        trainer = trainer_of(arm.model(0), arm.rate, 0, few, 1)
        return float(quietly(trainer.train).metrics["train_runtime"])

    arms = sorted(job.arms, key=lambda arm: arm.name != PLAIN)
    found = interleave({arm.name: partial(seconds, arm) for arm in arms}, rounds, options.budget)
    return {row["arm"]: row["ratio"] for row in found}


def _batches(seed: int) -> list[Any]:
    """Return eight batches of training entries, for starts from data."""
    tokenizer = AutoTokenizer.from_pretrained(base())
    rated = Random(seed).sample(Job().data()[0], 256)
    rows = [{**tokenizer(text), "labels": label} for text, label in rated]
    return [DataCollatorWithPadding(tokenizer)(rows[at : at + 32]) for at in range(0, 256, 32)]


def _is_noise(row: Row, plain: Row, held_out: int) -> bool:
    counted = sum(each["accuracy"] * (1 - each["accuracy"]) / held_out for each in (row, plain))
    seeds = sum(each["deviation"] ** 2 / max(len(each["per_seed"]), 1) for each in (row, plain))
    return bool(abs(row["accuracy"] - plain["accuracy"]) < 2 * math.sqrt(counted + seeds))


def summary(rows: Sequence[Row]) -> list[str]:
    """Return how far each arm is from plain LoRA, and whether that is more than noise."""
    plain = next(row for row in rows if row["arm"] == PLAIN)
    told = [f"{PLAIN}: {plain['accuracy']:.2%}, at the rate {plain['learning_rate']:g}."]
    for row in rows:
        if row is not plain:
            behind, times = row["accuracy"] - plain["accuracy"], row["learning_rate"] / plain["learning_rate"]
            verdict = "noise" if row["noise"] else "more than noise"
            told.append(
                f"{row['arm']}: {100 * behind:+.2f} points, {verdict}; its best rate is {times:.2g} times LoRA's."
            )
    return told
