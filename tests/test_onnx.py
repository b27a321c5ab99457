"""ONNX and `torch.export`: an adapted model computes there what it computes here, on sizes that were not traced."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lora import LoRAConfig, LoRAModel, add_lora, export_onnx
from hf_lora.errors import AdapterFileError, ArgumentError, EngineError

from .cases import KIND_CASES, VARIANTS, allowed, data_of, moves_base
from .tiny import inputs, tiny

PAIR = {"target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Case:
    """A model to export: its sizes and adapter, its base's dtype, whether it is merged, what it is traced with."""

    family: str
    sizes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    is_merged: bool = False
    others: tuple[str, ...] = ()  # further adapters
    active: tuple[str, ...] = ("default",)
    given: dict[str, Any] | None = None

    def model(self) -> Any:
        """Return a LoRAModel whose adapters change something, and whose dropout must not act in what is exported."""
        given = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.5}
        config = LoRAConfig(**{**given, **self.settings})
        found: Any = LoRAModel.from_model(tiny(self.family, **self.sizes).to(self.dtype), config)
        for name in self.others:
            found.add_adapter(LoRAConfig(r=3, init_lora_weights=False, **PAIR), name)
        found.set_adapter([*self.active])
        for name, parameter in found.named_parameters():  # rows and parts in full begin as the base's
            if parameter.requires_grad and "lora_" not in name:
                parameter.data.add_(torch.randn_like(parameter))
        return found.merge_and_unload() if self.is_merged else found


BERT, GPT, LLAMA, T5 = ({key: 1} for key in ("num_hidden_layers", "n_layer", "num_hidden_layers", "num_layers"))
ONE = torch.full((1, 1), 5)
CASES = {
    "BERT": Case("bert", BERT),
    "GPT-2": Case("gpt2", GPT),
    "GPT-2 merged": Case("gpt2", GPT, is_merged=True),
    "traced with one token of one row": Case("bert", BERT, given={"input_ids": ONE, "attention_mask": ONE // 5}),
    "as long as there are positions": Case("gpt2", GPT, given={"input_ids": ONE.repeat(2, 32)}),
    "bfloat16": Case("llama", LLAMA, dtype=torch.bfloat16),
    "float16 merged": Case("bert", BERT, dtype=torch.float16, is_merged=True),
    "one of two adapters": Case("llama", LLAMA, others=("other",), active=("other",)),
    "two adapters": Case("llama", LLAMA, PAIR, others=("other",), active=("default", "other")),
    "a table and a head": Case(
        "llama", LLAMA, {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "lora_dropout": 0.0}
    ),
    "token rows": Case("llama", LLAMA, {**PAIR, "trainable_token_indices": [5, 6]}),
    "a head": Case("bert", BERT, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "experts": Case("mixtral", LLAMA, {"lora_dropout": 0.0}),
    "T5": Case("t5", T5, given=inputs("t5")),
    "T5 merged": Case("t5", T5, given=inputs("t5"), is_merged=True),
    "Whisper": Case("whisper", {"encoder_layers": 1, "decoder_layers": 1}),
    "ViT": Case("vit", BERT),
}


def run(file: Path, given: dict[str, Any], output: str = "logits") -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.tensor(session.run([output], {name: value.numpy() for name, value in given.items()})[0])


def resized(name: str, value: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Return an input of another batch size; of tokens and masks of another length as well."""
    value = torch.cat([value] * batch)[:batch]
    return value if value.is_floating_point() else torch.cat([value] * length, 1)[:, :length].contiguous()


@pytest.mark.parametrize("what", CASES)
def test_an_onnx_file_computes_the_model_on_other_sizes_than_the_traced(what: str, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    case, file = CASES[what], tmp_path / "model.onnx"
    torch.manual_seed(0)
    model, given = case.model().train(), case.given
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert export_onnx(model, file, given) < 1e-4
    assert model.training  # as it was, weights too
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model = model.eval().float()
    for batch, length in ((1, 1), (3, 9)):
        other = {name: resized(name, each, batch, length) for name, each in (given or inputs(case.family)).items()}
        with torch.no_grad():
            wanted = model(**other).logits
        torch.testing.assert_close(run(file, other), wanted, rtol=1e-4, atol=1e-5)
        if not case.is_merged:  # what is exported is the adapted model, and not its base
            with torch.no_grad(), model.adapters_disabled():
                assert (model(**other).logits - wanted).abs().max() > 1e-3


def test_attention_is_exported_right_for_padding_on_the_left_and_in_a_block(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model, file = Case("llama", LLAMA, others=("other",)).model().eval(), tmp_path / "a.onnx"
    given = inputs("llama")
    given["attention_mask"] = given["attention_mask"].flip(1)
    with model.adapters_active("other"):
        export_onnx(model, file, given)
        with torch.no_grad():
            wanted = model(**given).logits
    real = given["attention_mask"].bool()
    torch.testing.assert_close(run(file, given)[real], wanted[real], rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterFileError, match="is there already"):
        export_onnx(model, file)
    with pytest.raises(AdapterFileError, match=r"ends in \.onnx"):
        export_onnx(model, tmp_path / "model.pt")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if allowed("linear", v)])
def test_torch_export_and_onnx_take_every_variant_live(variant: str, tmp_path: Path) -> None:
    case = KIND_CASES["linear"]
    config = LoRAConfig(**{"r": 2, **case.targets, **VARIANTS[variant]})  # type: ignore[arg-type]
    model = add_lora(case.build(), config, **data_of("linear", variant)).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    x = case.x()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    larger = torch.cat([x, x + 1])
    torch.testing.assert_close(program.module()(larger), model(larger))
    if "init_lora_weights" in VARIANTS[variant] and not moves_base(variant):
        return  # the graph is plain LoRA's
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    assert export_onnx(model, tmp_path / "a.onnx", {"x": x}) < 1e-5
    torch.testing.assert_close(run(tmp_path / "a.onnx", {"x": larger}, "output"), model(larger).detach())


class _NoNumber(torch.nn.Module):
    """A model whose second output is no number, and another in what is exported."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": x + 1, "b": x * (2.0 if torch.compiler.is_exporting() else float("nan"))}


@pytest.mark.parametrize(
    ("model", "given", "error", "told"),
    [
        ("a model", None, ArgumentError, "a model is wanted, not a str"),
        (torch.nn.Linear(2, 2), None, EngineError, r"nobody knows what a Linear takes: give inputs="),
        (torch.nn.Linear(2, 2), {"x": torch.ones(2, 2)}, EngineError, r"cannot be called with x \(2, 2\): .*'x'"),
        (torch.nn.Linear(2, 2), {"input": 1}, ArgumentError, "a mapping of names to tensors"),
    ],
)
def test_what_cannot_be_exported_is_told_and_nothing_is_written(
    model: Any, given: Any, error: type[Exception], told: str, tmp_path: Path
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with pytest.raises(error, match=told):
        export_onnx(model, tmp_path / "a.onnx", given)
    assert not any(tmp_path.iterdir())


def test_an_output_that_is_no_number_is_a_difference(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with pytest.raises(EngineError, match="differ by nan"):
        export_onnx(_NoNumber(), tmp_path / "a.onnx", {"x": torch.ones(2, 3)})
    assert not any(tmp_path.iterdir())
