"""What PEFT opens of our files: each is one that it loads and computes the same with, or was refused, or is said.

PEFT confirms every row. Its own model is asked as well where we refuse: nothing is refused that it takes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAError, LoRAModel, add_lora
from hf_lora.errors import ConfigError, TargetError

from .cases import move
from .tiny import floats, inputs, tiny

CHATTER = (
    "target_modules.* lies in modules_to_save",
    ".*ensure_weight_tying",
    "fan_in_fan_out is set",
    "Setting .save_embedding_layers.",
    "Unsupported layer type",
)
pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    *(pytest.mark.filterwarnings(f"ignore:{message}:UserWarning") for message in CHATTER),
]
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


class Wide(nn.Linear):
    """A linear layer with a second matrix."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.extra = nn.Parameter(torch.empty(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.extra


class Inner(nn.Module):
    """A layer beside raw matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.matrix, self.stack = nn.Linear(8, 8), *(nn.Parameter(torch.empty(*n, 8, 8)) for n in ((), (2,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x @ self.matrix) + x @ self.stack[0] - x @ self.stack[1]


class Net(nn.Module):
    """Modules of all sorts: tables, lists, dicts, an attention, and a matrix of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.my_table = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.fc, self.fc2, self.wide, self.inner, self.out = (
            *(nn.Linear(8, 8) for _ in "ab"),
            Wide(),
            Inner(),
            nn.Linear(8, 20),
        )
        self.parts = nn.ModuleDict({"x": nn.Linear(8, 8), "list": nn.ModuleList([nn.Linear(8, 8), nn.Tanh()])})
        self.many, self.bare = nn.ModuleList([self.fc2, nn.Linear(8, 8)]), nn.ParameterList([torch.empty(8)])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.empty(8, 8))})
        self.attention, self.matrix = nn.MultiheadAttention(8, 2, batch_first=True), nn.Parameter(torch.empty(8, 8))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.fc2(self.fc(self.table(input_ids) + self.my_table(input_ids)))
        y = self.parts["list"]
        x = x + y[1](y[0](self.parts["x"](x))) @ self.matrix + self.many[1](x) * self.bare[0] @ self.named["a"]
        return self.out(self.wide(x + self.inner(x)) + self.attention(x, x, x)[0])


class Tied(nn.Module):
    """A table and an output layer of one matrix, of which no config tells."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.fc(self.table(input_ids)))


class Times(nn.Embedding):
    """A table whose forward multiplies."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * 3


class Twice(nn.Module):
    """An output layer in a module of its name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.last = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Sequential()
        self.last.add_module("norm", nn.LayerNorm(8))
        self.last.add_module("last", nn.Linear(8, 20))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.last(self.fc(self.table(input_ids)))


class Scaled(nn.Module):
    """A model over one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = Times(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids))


class Named(nn.Module):
    """Two layers, the first of a given name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.table, self.head = name, nn.Embedding(20, 8), nn.Linear(8, 20)
        self.add_module(name, nn.Linear(8, 8))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(getattr(self, self.name)(self.table(input_ids)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "net": Net,
    "tied": Tied,
    "scaled": Scaled,
    "twice": Twice,
    "A": lambda: Named("A"),
    "base_layer": lambda: Named("base_layer"),
    "lora_A": lambda: Named("lora_A"),
}
_MADE: dict[str, nn.Module] = {}


def _base(name: str) -> nn.Module:
    if name not in _MADE:
        _MADE[name] = NETS[name]() if name in NETS else tiny(name, noisy=True)
        torch.manual_seed(1)
        for parameter in _MADE[name].parameters() if name in NETS else ():
            nn.init.normal_(parameter, std=0.4)
    return copy.deepcopy(_MADE[name]).eval()


def _outputs(model: nn.Module, name: str) -> list[Tensor]:
    with torch.no_grad():
        return [model(IDS)] if name in NETS else floats(model(**inputs(name)))


def _same(one: nn.Module, other: nn.Module, name: str) -> bool:
    pairs = zip(_outputs(one, name), _outputs(other, name), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


ROWS = [3, 4, 7]
SEEN = [int(i) for i in inputs("gpt2")["input_ids"][0][:3]]  # rows that the models of Transformers look at


def _of(base: str, *targets: str, **config: Any) -> tuple[str, dict[str, Any]]:
    return base, {"r": 2, "target_modules": list(targets), **config}


# What PEFT opens as it was trained, and what its config says where that is not what was given.
OPENED: dict[str, tuple[tuple[str, dict[str, Any]], dict[str, Any]]] = {
    "a dict of modules": (_of("net", "fc", modules_to_save=["parts"]), {"modules_to_save": ["parts.x", "parts.list.0"]}),
    "a list in a dict": (_of("net", "fc", modules_to_save=["list"]), {"modules_to_save": ["parts.list.0"]}),
    "a list that holds a layer of another name": (_of("net", "fc", modules_to_save=["many"]), {"modules_to_save": ["fc2", "many.1"]}),
    "a list of a Transformers model": (_of("gpt2", "lm_head", modules_to_save=["h"]), {"modules_to_save": ["transformer.h.0", "transformer.h.1"]}),
    "a module and one in it": (_of("net", "fc", modules_to_save=["inner", "lin"]), {"modules_to_save": ["inner"]}),
    "a name that ends those inside as well": (_of("bert", "query", modules_to_save=["embeddings"]), {"modules_to_save": ["bert.embeddings"]}),
    "half a name of a target": (_of("net", "fc", "lin", "fc2", modules_to_save=["c2"]), {"modules_to_save": ["fc2"]}),
    "a target that is saved": (_of("net", "fc", "fc2", modules_to_save=["fc2"]), {}),
    "a parameter in a saved module": (_of("net", "fc", target_parameters=["inner.matrix"], modules_to_save=["inner"]), {"target_parameters": None}),
    "one of two parameters in it": (_of("net", "fc", target_parameters=["matrix", "extra"], modules_to_save=["inner", "fc2"], exclude_modules=["matrix"]), {"target_parameters": ["wide.extra"]}),
    "parameters and what is saved alone": (_of("net", target_parameters=["inner.matrix"], modules_to_save=["inner"]), {"target_modules": "dummy-target-modules"}),
    "rows alone": (_of("net", trainable_token_indices={"my_table": ROWS}), {"target_modules": "dummy-target-modules"}),
    "saves alone": (_of("llama", modules_to_save=["norm"]), {"target_modules": "dummy-target-modules"}),
    "no rows of a table": (_of("net", "fc", trainable_token_indices={"table": [], "my_table": ROWS}), {"trainable_token_indices": {"my_table": ROWS}}),
    "no rows": (_of("net", "fc", trainable_token_indices=[]), {"trainable_token_indices": None}),
    "a table whose name ends another's": (_of("net", "fc", trainable_token_indices={"my_table": ROWS}), {}),
    "rows of two tables, not equally many": (_of("llama", "q_proj", trainable_token_indices={"embed_tokens": SEEN, "lm_head": SEEN[:2]}), {}),
    "rows of a tied output layer": (_of("gpt2", "c_attn", trainable_token_indices={"lm_head": SEEN}), {"trainable_token_indices": {"transformer.wte": SEEN}}),
    "rows of one of three tied tables": (_of("t5", "q", trainable_token_indices={"encoder.embed_tokens": SEEN}), {"trainable_token_indices": {"shared": SEEN}}),
    "rows, and an adapter on the tied output layer": (_of("gpt2", "c_attn", "lm_head", trainable_token_indices=SEEN), {}),
    "experts whose layer is saved elsewhere": (_of("mixtral", "q_proj", target_parameters=["experts.down_proj"], modules_to_save=["gate"]), {}),
    "parameters of one owner": (_of("net", "fc", target_parameters=["inner.matrix", "inner.stack"]), {}),
    "a task on a module without a config": (_of("net", "fc", task_type="FEATURE_EXTRACTION"), {"task_type": None}),
    "a task of another class": (_of("deberta", "pos_proj", task_type="CAUSAL_LM"), {"task_type": None}),
    "its own task": (_of("llama", "q_proj", task_type="CAUSAL_LM"), {"task_type": "CAUSAL_LM"}),
}  # fmt: skip


@pytest.mark.parametrize("what", OPENED)
def test_peft_opens_what_is_saved_here_and_computes_the_same(what: str, tmp_path: Path) -> None:
    (name, config), told = OPENED[what]
    torch.manual_seed(2)
    model = add_lora(_base(name), LoRAConfig(**config))
    move(model, scale=0.2)
    model.save_pretrained(tmp_path)
    assert not _same(model, _base(name), name)
    assert _same(peft.PeftModel.from_pretrained(_base(name), str(tmp_path)), model, name)
    assert _same(LoRAModel.from_pretrained(tmp_path, base_model=_base(name)), model, name)
    theirs = peft.LoraConfig.from_pretrained(str(tmp_path)).to_dict()
    assert {key: sorted(v) if isinstance(v := theirs[key], set) else v for key in told} == told


# What neither takes, and what the error says.
REFUSED: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "rows of a table that is saved": (_of("net", "fc", modules_to_save=["table"], trainable_token_indices={"table": ROWS}), "both name table"),
    "rows of a target": (_of("net", "table", trainable_token_indices={"table": ROWS}), "table: a low-rank adapter and"),
    "rows of a target that is linear": (_of("net", "fc", trainable_token_indices={"fc": [1]}), "fc: a low-rank adapter and"),
    "rows of a parameter": (_of("net", "fc", target_parameters=["table.weight"], trainable_token_indices={"table": ROWS}), "table: a low-rank"),
    "rows beside DoRA on the tied head": (_of("gpt2", "c_attn", "lm_head", use_dora=True, trainable_token_indices=SEEN), "lm_head: a low-rank"),
    "rows beside LoRA on a tied table": (_of("t5", "q", "encoder.embed_tokens", trainable_token_indices=SEEN), "embed_tokens: a low-rank"),
    "one weight as layer and as parameter": (_of("net", "fc", target_parameters=["fc.weight"]), r"fc\.weight: named twice"),
    "a layer and another parameter of it": (_of("net", "wide", target_parameters=["wide.extra"]), r"wide\.extra: named twice"),
    "an attention's packed weight": (_of("net", "attention", target_parameters=["in_proj_weight"]), "in_proj_weight: named twice"),
    "an attention and its output": (_of("net", "attention", target_parameters=["out_proj.weight"]), r"out_proj\.weight: named twice"),
    "experts of a layer that is one": (_of("llama", "q_proj", target_parameters=["0.self_attn.q_proj.weight"]), "named twice"),
    "the model's own parameter": (_of("net", "fc", target_parameters=["matrix"]), "matrix: a parameter of the model itself"),
    "a list of parameters": (_of("net", "fc", modules_to_save=["bare"]), "bare is a ParameterList"),
    "a dict of parameters": (_of("net", "fc", modules_to_save=["named"]), "named is a ParameterDict"),
    "parameters beside Conv1D layers": (_of("gpt2", "c_attn", target_parameters=["wte.weight"]), "a Conv1D layer beside target_parameters"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_peft_cannot_open_is_refused_when_it_is_attached(what: str) -> None:
    (name, config), told = REFUSED[what]
    base = _base(name)
    with pytest.raises(LoRAError, match=told) as refused:
        add_lora(base, LoRAConfig(**config))
    assert isinstance(refused.value, ValueError)
    assert type(base) is type(_base(name))
    assert _same(base, _base(name), name)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        _outputs(peft.get_peft_model(_base(name), peft.LoraConfig(**config)).eval(), name)


# What is trained and read here, and PEFT cannot open: the base, the config, and the reason that is said.
EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
SAID: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "a name that ends a part of PEFT's layers": (_of("A", "head", modules_to_save=["A"]), "modules_to_save='A' also ends"),
    "a module inside of another of its name": (_of("twice", "fc", modules_to_save=["last"]), "'last' also names last.last"),
    "a projection of Mamba's": (_of("mamba", "in_proj", "out_proj"), "out_proj is a layer of a Mamba"),
    "dense layers beside fused experts": (_of("deepseek_v3", "mlp.gate_proj", "mlp.up_proj", **EXPERTS), "mlp.gate_proj is a layer whose name"),
    "rows of a table whose name ends another's": (_of("net", "fc", trainable_token_indices={"table": ROWS}), "'table' also ends my_table"),
    "rows beside a tied layer that is saved": (_of("gpt2", "c_attn", modules_to_save=["lm_head"], trainable_token_indices=SEEN), "lm_head is saved whole and tied"),
}  # fmt: skip
# What PEFT opens and computes otherwise: the card says so, and the reason.
OTHERWISE: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "an attention of torch's": (_of("net", "fc", "attention"), "attention is of an nn.MultiheadAttention"),
    "PiSSA on one": (_of("net", "attention", init_lora_weights="pissa"), "attention is of an nn.MultiheadAttention"),
    "its output alone": (_of("net", "fc", "out_proj"), "attention.out_proj is of an nn.MultiheadAttention"),
    "rows of a layer with a bias": (_of("net", "fc", trainable_token_indices={"fc2": [1]}), "it leaves out the bias of fc2"),
    "rows of a tied table that no config tells of": (_of("tied", "fc", trainable_token_indices={"table": ROWS}), "table is tied"),
    "a parameter of a dict": (_of("net", "fc", target_parameters=["named.a"]), "named is a ParameterDict"),
    "a table that scales": (_of("scaled", "table"), "table computes in a way of its own"),
    "rows of one": (_of("scaled", "head", trainable_token_indices={"table": ROWS}), "table computes in a way of its own"),
}  # fmt: skip


@pytest.mark.parametrize("what", [*SAID, *OTHERWISE])
def test_what_peft_does_not_load_as_it_is_meant_is_said_and_not_offered(what: str, tmp_path: Path) -> None:
    (name, config), reason = {**SAID, **OTHERWISE}[what]
    model = add_lora(_base(name), LoRAConfig(**config))
    move(model, scale=0.2)
    with pytest.warns(UserWarning, match=f"PEFT cannot open .*{reason}") if what in SAID else nullcontext():
        model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert reason in card
    assert "from peft import" not in card
    assert _same(LoRAModel.from_pretrained(tmp_path, base_model=_base(name)), model, name)
    fails = what in {*SAID, "a parameter of a dict", "PiSSA on one"}
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError, RuntimeWarning)) if fails else nullcontext():
        assert not _same(peft.PeftModel.from_pretrained(_base(name), str(tmp_path)), model, name)


NAMES = {"a layer": _of("base_layer", "base_layer"), "what is saved": _of("lora_A", "head", modules_to_save=["lora_A"])}


@pytest.mark.parametrize("what", NAMES)
def test_a_module_whose_name_files_use_for_a_part_of_their_own_is_refused(what: str) -> None:
    name, config = NAMES[what]
    with pytest.raises(TargetError, match="for a part of their own; rename it"):
        add_lora(_base(name), LoRAConfig(**config))


OTHERS = {"a key of nobody's": {"my_note": "x"}, "a key that is not built": {"use_qalora": True}}


@pytest.mark.parametrize("what", OTHERS)
def test_a_key_with_which_no_file_would_be_read_again_is_refused(what: str) -> None:
    with pytest.raises(ConfigError, match=next(iter(OTHERS[what]))):
        add_lora(_base("net"), LoRAConfig(target_modules=["fc"], other=OTHERS[what]))
