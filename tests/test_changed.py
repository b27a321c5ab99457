"""What is measured when an adapter is attached is followed when it changes afterwards, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready
from hf_lora.errors import AdapterStateError, BaseMismatchError, ConfigError, LoRAError

from .cases import TransposedLinear, move
from .tiny import IDS, checkpointed, tiny


class Scaled(nn.Embedding):
    """An embedding with a scale that casts round, as Gemma has."""

    def __init__(self) -> None:
        super().__init__(12, 6)
        self.register_buffer("embed_scale", torch.tensor(6**0.5), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Scales(nn.Embedding):
    scale = 3.0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.scale


def ids() -> Tensor:
    return torch.randint(1, 12, (4, 5))


def numbers() -> Tensor:
    return torch.randn(4, 6, 6)


# A layer, an input, and the config's own settings.
MEMBERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "scaled embedding": (Scaled, ids, {}),
    "embedding with a scale": (lambda: Scales(12, 6), ids, {}),
    "embedding": (lambda: nn.Embedding(12, 6), ids, {}),
    "linear": (lambda: nn.Linear(6, 6), numbers, {}),
    "linear with a bias of LoRA's": (lambda: nn.Linear(6, 6), numbers, {"lora_bias": True}),
    "linear of a class of its own": (lambda: TransposedLinear(6, 6), numbers, {}),
    "DoRA": (lambda: nn.Linear(6, 6), numbers, {"use_dora": True}),
    "PiSSA": (lambda: nn.Linear(6, 6), numbers, {"init_lora_weights": "pissa"}),
    "convolution": (lambda: nn.Conv1d(6, 6, 3), numbers, {}),
    "saved": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), numbers, {"target_modules": ["0.0"], "modules_to_save": ["0.1"]}),
}  # fmt: skip


def adapted(member: str) -> tuple[Any, Tensor]:
    build, example, settings = MEMBERS[member]
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(build()), LoRAConfig(**{"r": 2, "target_modules": ["0"], **settings})).eval()
    move(model)
    return model, example()


def put(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda model: setattr(model[0], name, value)


def new_weights(model: Any) -> None:
    own = {name: torch.randn_like(t) for name, t in model.state_dict().items() if ".adapters." not in name}
    model.load_state_dict(own, strict=False)


def new_parameter(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))


CASTS: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16 and back": lambda model: model.bfloat16().float(),
    "double": lambda model: model.double(),
}
FOLLOWED: list[tuple[str, str, Callable[[Any], Any]]] = [
    *((member, name, cast) for member in MEMBERS if member != "PiSSA" for name, cast in CASTS.items()),
    *((member, "other weights", new_weights) for member in MEMBERS if member != "PiSSA"),
    ("linear", "another parameter", new_parameter),
    ("convolution", "another parameter", new_parameter),
    ("embedding", "another parameter", new_parameter),
    ("linear", "no bias", put("bias", None)),
    ("DoRA", "no bias", put("bias", None)),
    ("convolution", "another stride", put("stride", (2,))),
    ("convolution", "another padding", put("padding_mode", "circular")),
    ("embedding", "another row that pads", put("padding_idx", 3)),
]


@pytest.mark.parametrize(
    ("member", "change"), [(m, c) for m, _, c in FOLLOWED], ids=[f"{m}-{n}" for m, n, _ in FOLLOWED]
)
def test_what_changes_after_attaching_is_followed(member: str, change: Callable[[Any], Any], tmp_path: Path) -> None:
    model, x = adapted(member)
    change(model)
    dtype = next(p.dtype for name, p in model.named_parameters() if ".adapters." not in name)
    x = x.to(dtype) if x.is_floating_point() else x
    live, base = model(x), copy.deepcopy(model).unload()
    tolerance = 2e-2 if dtype is torch.float16 else 1e-5
    model.save_pretrained(tmp_path)
    again = LoRAModel.from_pretrained(tmp_path, base_model=base).eval()
    torch.testing.assert_close(again(x), live, rtol=tolerance, atol=tolerance)
    model.merge_adapter()
    torch.testing.assert_close(model(x), live, rtol=tolerance, atol=tolerance)


def quantised(model: Any) -> None:
    model[0]._parameters["weight"] = nn.Parameter(torch.ones(6, 6, dtype=torch.int8), requires_grad=False)


REFUSED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a scale in a buffer": ("scaled embedding", put("embed_scale", torch.tensor(2.0)), "multiplies by 2, not 2.449"),
    "a scale in an attribute": ("embedding with a scale", put("scale", 2.0), "multiplies by 2, not 3"),
    "a norm": ("embedding", put("max_norm", 0.5), "max_norm=0.5"),
    "a quantised weight": ("linear", quantised, "0 was quantised"),
    "another layer": ("linear", lambda m: m.__setitem__(0, nn.Linear(6, 6)), "no part of the model any more"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_is_refused_before_training_merging_and_saving(what: str, tmp_path: Path) -> None:
    member, change, match = REFUSED[what]
    model, _ = adapted(member)
    change(model)
    for use in (
        lambda: check_ready(model),
        model.merge_adapter,
        model.merge_and_unload,
        lambda: model.save_pretrained(tmp_path),
    ):
        with pytest.raises(AdapterStateError, match=match):
            use()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
def test_an_adapter_that_started_from_weights_which_are_others_now_is_not_saved(start: str, tmp_path: Path) -> None:
    model = add_lora(nn.Sequential(nn.Linear(6, 6)), LoRAConfig(r=2, target_modules=["0"], init_lora_weights=start))
    move(model)
    model.save_pretrained(tmp_path / "before")
    new_weights(model)
    with pytest.raises(BaseMismatchError, match=f"'default' took its factors out of .*{start}"):
        model.save_pretrained(tmp_path / "after")


@pytest.mark.parametrize(
    ("field", "value"), [("lora_alpha", 64), ("r", 4), ("use_rslora", True), ("lora_dropout", 0.5)]
)
def test_the_config_of_an_adapter_that_is_there_takes_no_other_formula(field: str, value: Any) -> None:
    given = LoRAConfig(r=2, target_modules=["0"])
    model = add_lora(nn.Sequential(nn.Linear(6, 6)), given)
    config = model.peft_config["default"]
    with pytest.raises(ConfigError, match=f"{field}={value}.*copy"):
        setattr(config, field, value)
    config.base_model_name_or_path = "someone/base"
    assert getattr(config.copy(**{field: value}), field) == value
    for free in (given, copy.deepcopy(config)):
        setattr(free, field, value)


def test_entries_of_an_adapters_config_that_are_set_in_place_are_no_secret_of_its_file(tmp_path: Path) -> None:
    model = add_lora(nn.Sequential(nn.Linear(6, 6)), LoRAConfig(r=2, target_modules=["0"]))
    config = model.peft_config["default"]
    config.alpha_pattern["0"] = 64
    with pytest.raises(AdapterStateError, match="alpha_pattern of 'default' was set"):
        model.save_pretrained(tmp_path)
    del config.alpha_pattern["0"]
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("leave", ["delete_adapter", "unload", "merge_and_unload"])
def test_the_config_of_an_adapter_that_is_gone_can_be_used_for_another(leave: str) -> None:
    model = add_lora(nn.Sequential(nn.Linear(6, 6)), LoRAConfig(r=2, target_modules=["0"]))
    config = model.peft_config["default"]
    getattr(model, leave)(*["default"] * (leave == "delete_adapter"))
    config.r = 4
    assert add_lora(nn.Sequential(nn.Linear(6, 6)), config).peft_config["default"].r == 4


# --- tied tables ------------------------------------------------------------------------------------------------------


def tie(model: Any) -> None:
    model.lm_head.weight = model.get_input_embeddings()._parameters["weight"]


def part(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head._parameters["weight"].detach().clone())


ROWS = {"trainable_token_indices": [3, 5]}


@pytest.mark.filterwarnings("ignore:PEFT cannot open:UserWarning")
@pytest.mark.parametrize(
    ("tied", "change", "settings", "match"),
    [
        (False, tie, ROWS, "lm_head was tied to model.embed_tokens, whose rows train"),
        (True, part, ROWS, "model.embed_tokens and lm_head, whose rows train, were parted"),
        (False, tie, {**ROWS, "modules_to_save": ["lm_head"]}, None),
        (True, part, {"modules_to_save": ["lm_head"]}, None),
        (True, part, {"target_modules": ["embed_tokens"]}, None),
        (True, None, ROWS, None),
    ],
)
def test_rows_of_a_table_that_is_tied_to_others_than_it_was_are_refused(
    tied: bool, change: Callable[[Any], None] | None, settings: dict[str, Any], match: str | None, tmp_path: Path
) -> None:
    config = LoRAConfig(**{"r": 2, "target_modules": ["q_proj"], **settings})
    model: Any = LoRAModel.from_model(tiny("llama", tie_word_embeddings=tied), config)
    move(model)
    if change is not None:
        change(model)
    if match is not None:
        with pytest.raises(AdapterStateError, match=match):
            model.save_pretrained(tmp_path)
        return
    model.save_pretrained(tmp_path)
    live, base = model(IDS).logits, copy.deepcopy(model).unload()
    again: Any = LoRAModel.from_pretrained(tmp_path, base_model=base)
    torch.testing.assert_close(again(IDS).logits, live)


# --- between a forward and its backward -------------------------------------------------------------------------------


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if ".adapters." in n and p.grad is not None}


def two(early: bool, use_reentrant: bool) -> Any:
    """Return a model with the adapters a and b; early: its layers were checkpointed before it had any."""
    base = tiny("llama", noisy=True).train()
    if early:
        checkpointed(base, use_reentrant)
    torch.manual_seed(0)
    model: Any = LoRAModel.from_model(base, LoRAConfig(r=2, target_modules=["q_proj", "down_proj"]), "a")
    model.add_adapter(LoRAConfig(r=2, target_modules=["q_proj", "down_proj"]), "b")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name:
                parameter.add_(torch.randn_like(parameter))
    if not early:
        checkpointed(model, use_reentrant)
    model.enable_input_require_grads()
    model.set_adapter("a")
    return model


def loss_of(model: Any) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def in_a_block(model: Any) -> Tensor:
    with model.adapters_disabled():
        return loss_of(model)


# What happens after the forward of a, and what else is added to the loss.
SWITCHES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "another": lambda model: model.set_adapter("b"),
    "another as well": lambda model: model.set_adapter(["a", "b"]),
    "off": lambda model: model.disable_adapters(),
    "one without": in_a_block,
    "a new one": lambda model: model.add_adapter(LoRAConfig(r=2), "c"),
    "another is deleted": lambda model: model.delete_adapter("b"),
    "to and fro": lambda model: (model.set_adapter("b"), model.set_adapter("a"))[0],
}


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    model = two(False, False)
    model.gradient_checkpointing_disable()
    loss_of(model).backward()
    return gradients(model)


pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able.*:FutureWarning")


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_checkpointed_forward_is_computed_again_with_its_own_adapters(
    switch: str, use_reentrant: bool, wanted: dict[str, Tensor]
) -> None:
    model = two(switch == "another", use_reentrant)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    loss = loss_of(model)
    further = SWITCHES[switch](model)
    (loss if further is None else loss + further).backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name])
    if switch in ("nothing", "off", "one without", "to and fro"):
        assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    elif switch == "another":
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n in flags if ".b." in n}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("gone", ["delete_adapter", "merge_adapter", "unload"])
def test_what_cannot_be_computed_again_is_an_error(gone: str, use_reentrant: bool) -> None:
    model = two(False, use_reentrant)
    loss = loss_of(model)
    getattr(model, gone)(*(["a"] if gone == "delete_adapter" else []))
    with pytest.raises(LoRAError, match=r"deleted meanwhile|merged or unmerged"):
        loss.backward()


def test_a_model_that_its_adapters_left_is_checkpointed_as_before() -> None:
    base = tiny("llama")
    checkpointed(base, False)
    before = [m.__dict__.get("_gradient_checkpointing_func") for m in base.modules()]
    model = LoRAModel.from_model(base, LoRAConfig(r=2)).unload()
    assert [m.__dict__.get("_gradient_checkpointing_func") for m in model.modules()] == before
