"""The learning rate that an adapter's formula and start are made for."""

from __future__ import annotations

from ..config.lora_config import LoRAConfig
from ..config.tasks import TASK_TYPES, Task
from ..variants.initial import INITS
from ..variants.row import Rate
from ..variants.table import formula_of


def suggested_learning_rate(config: LoRAConfig, task_type: str | None = None) -> float:
    """Return the peak learning rate to begin with for an adapter of a config, trained by AdamW.

    task_type: what is learnt, the config's own unless given. The rate is that of plain LoRA on all linear layers with
    lora_alpha = 2 r, 3e-4 for models that write texts (Tinker cookbook) and 1e-3 for others, times what formula and
    start need relative to it (`rates_of`; docs/variants.md has the table with its sources). A formula that nobody has
    measured counts as plain LoRA. Preferences and reinforcement learning need a tenth to a sixtieth of it.

    >>> suggested_learning_rate(LoRAConfig(task_type="CAUSAL_LM"))
    0.0003
    >>> suggested_learning_rate(LoRAConfig(task_type="CAUSAL_LM", init_lora_weights="pissa"))
    3e-05
    """
    task = TASK_TYPES.get(task_type or config.task_type or "")
    return scaled_rate(config, (task or Task(None, "")).learning_rate)


def scaled_rate(config: LoRAConfig, rate: float) -> float:
    """Return plain LoRA's rate times what a config's formula and start need, with two digits."""
    for each in rates_of(config):
        rate *= each.factor
    return float(f"{rate:.1e}")


def rates_of(config: LoRAConfig) -> list[Rate]:
    """Return what is known of the best rates of a config's formula and start, relative to plain LoRA's."""
    return [row.rate for row in (formula_of(config), INITS[config.init_lora_weights]) if row.rate is not None]
