"""What can vary in an adapter, as tables of rows: the formula and the scaling here, the start in `initial.py`.

To add a formula: its class in a file beside this one, and a row in `FORMULAS`. To add a scaling or a start: a row in
`SCALINGS` or `INITS`. Nothing else has to know. Needs no torch.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .papers import PAPERS, Paper
from .row import MOST_ITERATIONS, RATED_HERE, Rate, Row, Stored

_PRODUCT = (
    Stored("lora_A", "lora_A.weight", "lora_embedding_A", part="A", decays=True, inputs=-1, rank=0),
    Stored("lora_B", "lora_B.weight", "lora_embedding_B", part="B", decays=True, outputs=0, rank=1),
    Stored("lora_bias", "lora_B.bias", part="B", outputs=0, needed=False),
)

LORA = Row(
    name="lora",
    title="LoRA",
    code="hf_lora.variants.lora:LoRA",
    tensors=_PRODUCT,
    low_rank=True,
    paper=PAPERS["lora"],
    rate=Rate(1.0, "by definition"),
    engines=frozenset({"vLLM"}),
)
_LENGTH = Stored("magnitude", "lora_magnitude_vector", older=("lora_magnitude_vector.weight",), outputs=0, needed=False)
DORA = Row(
    name="dora",
    title="DoRA",
    code="hf_lora.variants.dora:DoRA",
    tensors=(*_PRODUCT, _LENGTH),
    low_rank=True,
    switch="use_dora",
    paper=PAPERS["dora"],
    rate=Rate(1.0, "about LoRA's: 3.6e-4 against 2e-4 for Qwen3-0.6B on GSM8K, less elsewhere (arXiv:2602.04998)"),
    no_bias="DoRA's length has no place for a bias",
    own_tensor="a DoRA length",
    elsewhere={
        "AdapterHub": "its DoRA leaves the scaling out of the norm, another formula than the paper's and PEFT's"
    },
)
# What a method of PEFT's own has no setting for.
_NO_LORA = frozenset({
    "alpha_pattern", "bias", "ensure_weight_tying", "lora_alpha", "lora_bias", "trainable_token_indices", "use_rslora",
})  # fmt: skip
_OWN_STARTS: frozenset[bool | str] = frozenset({True, False})
_PLAIN_STARTS: frozenset[bool | str] = _OWN_STARTS | {"gaussian"}  # no factor of which belongs to another
HIRA = Row(
    name="hira",
    title="HiRA",
    code="hf_lora.variants.hira:HiRA",
    tensors=(
        Stored("lora_A", "hira_A", "hira_embedding_A", part="A", decays=True, inputs=-1, rank=0),
        Stored("lora_B", "hira_B", "hira_embedding_B", part="B", decays=True, outputs=0, rank=1),
    ),
    low_rank=True,
    switch="use_hira",
    peft_type="HIRA",
    renamed={"lora_dropout": "hira_dropout", "init_lora_weights": "init_weights"},
    lacks=_NO_LORA,
    unscaled=True,
    starts=_PLAIN_STARTS,
    paper=PAPERS["hira"],
    rate=Rate(4.0, f"8e-3 for {RATED_HERE}"),
)


LORA_FA = Row(
    name="lora_fa",
    title="LoRA-FA",
    code="hf_lora.variants.lora_fa:LoRAFA",
    tensors=(replace(_PRODUCT[0], trains=False), *_PRODUCT[1:]),
    low_rank=True,
    switch="use_lora_fa",
    paper=PAPERS["lora_fa"],
    rate=Rate(1.0, f"2e-3 for {RATED_HERE}"),
    engines=frozenset({"vLLM"}),
)
LORA_XS = Row(
    name="lora_xs",
    title="LoRA-XS",
    code="hf_lora.variants.lora_xs:LoRAXS",
    tensors=(
        Stored("core", "lora_xs_core", decays=True, rank=0),
        Stored("found", "lora_xs_found", trains=False, of_base=True),
    ),
    low_rank=True,
    switch="use_lora_xs",
    peft_type="LORA_XS",
    in_peft=False,
    lacks=frozenset({"lora_bias"}),
    settings={"svd_niter": 0},
    bounds={"svd_niter": (0, MOST_ITERATIONS)},
    starts=_OWN_STARTS,
    paper=PAPERS["lora_xs"],
    rate=Rate(2 / 5, f"8e-3 with lora_alpha = 0.2 r, which is 8e-4 with 2 r, for {RATED_HERE}"),
)


def _vector_problems(c: Mapping[str, Any]) -> list[str]:
    """Say where VeRA's two vectors would both begin at zero, so that neither gets a gradient."""
    return [] if c["d_initial"] else ["d_initial=0, but nothing trains from there; 0.1 is usual."]


VERA = Row(
    name="vera",
    title="VeRA",
    code="hf_lora.variants.vera:VeRA",
    tensors=(
        Stored("lambda_b", "vera_lambda_b", outputs=0),
        Stored("lambda_d", "vera_lambda_d", rank=0),
        Stored("vera_A", "vera_A", trains=False, shared=True, at_top=True),
        Stored("vera_B", "vera_B", trains=False, shared=True, at_top=True),
    ),
    low_rank=True,
    switch="use_vera",
    peft_type="VERA",
    renamed={"lora_dropout": "vera_dropout", "init_lora_weights": "init_weights"},
    values={"bias": {"lora_only": "vera_only"}},
    lacks=(_NO_LORA - {"bias"}) | {"exclude_modules", "rank_pattern"},
    settings={"projection_prng_key": 0, "save_projection": True, "d_initial": 0.1},
    bounds={"projection_prng_key": (-(1 << 63), (1 << 64) - 1)},
    problems=_vector_problems,
    starts=_OWN_STARTS,
    unscaled=True,
    paper=PAPERS["vera"],
    rate=Rate(16.0, f"3.2e-2 for {RATED_HERE}"),
)
SHARELORA = Row(
    name="sharelora",
    title="ShareLoRA",
    code="hf_lora.variants.sharelora:ShareLoRA",
    tensors=(replace(_PRODUCT[0], shared=True), _PRODUCT[1]),
    low_rank=True,
    switch="use_sharelora",
    peft_type="SHARELORA",
    in_peft=False,
    lacks=frozenset({"lora_bias"}),
    starts=_PLAIN_STARTS,
    paper=PAPERS["sharelora"],
    rate=Rate(1.0, f"1e-3, a step of the grid, for {RATED_HERE}"),
)


def _schedule_problems(c: Mapping[str, Any]) -> list[str]:
    """Say which of AdaLoRA's settings cannot be; c: they and r, total_step 0 where nobody said it."""
    found = [
        f"{name}={c[name]!r}, but it is above 0 and below 1." for name in ("beta1", "beta2") if not 0 < c[name] < 1
    ]
    if c["target_r"] > c["r"]:
        found.append(
            f"target_r={c['target_r']!r} is more than r={c['r']!r}, the rank to begin with; 1.5 target_r is usual."
        )
    if c["total_step"] and c["tinit"] + c["tfinal"] >= c["total_step"]:
        found.append(
            f"tinit={c['tinit']} and tfinal={c['tfinal']} leave none of total_step={c['total_step']} for the budget to "
            "fall: take less of them, or train longer."
        )
    return found


ADALORA = Row(
    name="adalora",
    title="AdaLoRA",
    code="hf_lora.variants.adalora:AdaLoRA",
    tensors=(
        Stored("lora_A", "lora_A", part="A", decays=True, inputs=-1, rank=0),
        Stored("lora_B", "lora_B", part="B", decays=True, outputs=0, rank=1),
        Stored("lora_E", "lora_E", rank=0),
    ),
    low_rank=True,
    switch="use_adalora",
    peft_type="ADALORA",
    renamed={"r": "init_r"},
    unread=frozenset({"r", "rank_pattern"}),
    lacks=frozenset({
        "alpha_pattern", "ensure_weight_tying", "lora_bias", "rank_pattern", "trainable_token_indices",
        "use_rslora",
    }),
    settings={
        "target_r": 8, "tinit": 0, "tfinal": 0, "deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5,
        "total_step": 0,
    },
    bounds={
        "target_r": (1, math.inf), "tinit": (0, math.inf), "tfinal": (0, math.inf), "deltaT": (1, math.inf),
        "total_step": (0, math.inf), "orth_reg_weight": (0, math.inf),
    },
    problems=_schedule_problems,
    starts=_OWN_STARTS,
    budget="hf_lora.variants.budget:Budget",
    paper=PAPERS["adalora"],
    rate=Rate(4.0, f"8e-3 for {RATED_HERE}"),
)  # fmt: skip
SAVED = Row(
    name="saved",
    title="saved whole",
    code="hf_lora.variants.copies:Saved",
    tensors=(Stored("value", "", part="head", decays=None, inputs=0, outputs=0),),  # its key is the parameter's own
    whole=True,
)
TOKENS = Row(
    name="tokens",
    title="token rows",
    code="hf_lora.variants.copies:Tokens",
    tensors=(Stored("value", "token_adapter.trainable_tokens_delta", decays=None),),
    of_rows=True,
)

_CHOICES = (LORA, DORA, HIRA, LORA_FA, LORA_XS, VERA, SHARELORA, ADALORA)
FORMULAS: dict[str, Row] = {row.name: row for row in _CHOICES}  # what a config chooses from
COPIES: dict[str, Row] = {row.name: row for row in (SAVED, TOKENS)}  # what a config adds to it
ADAPTERS: Mapping[str, Row] = ChainMap(FORMULAS, COPIES)


@dataclass(frozen=True)
class Scaling:
    """The factor on B A. of: (alpha, r) -> factor; said: the same as text."""

    name: str
    of: Callable[[float, float], float]
    said: str
    switch: str = ""
    paper: Paper | None = None


SCALINGS: dict[str, Scaling] = {
    row.name: row
    for row in (
        Scaling("lora", lambda alpha, r: alpha / r, "alpha / r"),
        # Kalajdzievski 2023, arXiv:2312.03732
        Scaling("rslora", lambda alpha, r: alpha / math.sqrt(r), "alpha / sqrt(r)", "use_rslora", PAPERS["rslora"]),
    )
}


_Row = TypeVar("_Row", Row, Scaling)


def formula_of(config: Any) -> Row:
    """Return the formula that a config asks for. config: a LoRAConfig, or what an adapter_config.json holds."""
    kind = config.get("peft_type", "LORA") if isinstance(config, Mapping) else "LORA"
    return _chosen(FORMULAS, config) if kind == "LORA" else formula_named(kind) or LORA


def formula_named(peft_type: object) -> Row | None:
    """Return the formula that an adapter_config.json of a method stands for; plain LoRA's, until its keys are read."""
    return next((row for row in FORMULAS.values() if row.peft_type == peft_type), None)


def settings() -> dict[str, Any]:
    """Return what configs may say beside the fields of LoRAConfig: switches and settings of formulas, with defaults."""
    own = {key: default for row in FORMULAS.values() for key, default in row.settings.items()}
    return {**dict.fromkeys(switches(), False), **own}


def scaling_of(config: Any) -> Scaling:
    """Return the scaling that a config asks for. config: a LoRAConfig, or what an adapter_config.json holds."""
    return _chosen(SCALINGS, config)


def switches(rows: Mapping[str, Any] | None = None) -> list[str]:
    """Return the keys of a config that ask for a row of a table, of the formulas' and the scalings' unless given."""
    tables = (FORMULAS, SCALINGS) if rows is None else (rows,)
    return [row.switch for table in tables for row in table.values() if row.switch]


def is_on(config: Any, switch: str) -> Any:
    """Return what a config says of a switch, False where it says nothing: of a field of its own, or in `other`."""
    if isinstance(config, Mapping):
        return config.get(switch, False)
    return getattr(config, switch) if hasattr(config, switch) else config.other.get(switch, False)


def _chosen(rows: Mapping[str, _Row], config: Any) -> _Row:
    plain = next(row for row in rows.values() if not row.switch)
    return next((row for row in rows.values() if row.switch and is_on(config, row.switch) is True), plain)
