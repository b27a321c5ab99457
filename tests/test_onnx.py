"""ONNX and `torch.export`: an adapted model computes there what it computes here, on sizes that were not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lora import LoRAConfig, LoRAModel, add_lora, export_onnx
from hf_lora.errors import AdapterFileError, EngineError

from .cases import KIND_CASES, VARIANTS, allowed, data_of
from .tiny import inputs, tiny


def adapted(family: str, **sizes: Any) -> Any:
    """Return a LoRAModel whose adapter changes something, and whose dropout must not act in what is exported."""
    config = LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5)
    return LoRAModel.from_model(tiny(family, **sizes), config)


def run(file: Path, given: dict[str, Any]) -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.tensor(session.run(["logits"], {name: value.numpy() for name, value in given.items()})[0])


@pytest.mark.parametrize(
    ("family", "sizes", "is_live"),
    [("bert", {"num_hidden_layers": 1}, True), ("gpt2", {"n_layer": 1}, True), ("gpt2", {"n_layer": 1}, False)],
)
def test_an_onnx_file_computes_the_model_on_other_sizes_than_the_traced(
    family: str, sizes: dict[str, Any], is_live: bool, tmp_path: Path
) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    model, file = adapted(family, **sizes), tmp_path / "model.onnx"
    if not is_live:
        model = model.merge_and_unload()
    assert export_onnx(model.train(), file) < 1e-4
    assert model.training  # as it was
    given = {name: torch.cat([value, value], 1)[:1, :9] for name, value in inputs(family).items()}
    with torch.no_grad():
        wanted = model.eval()(**given).logits
    torch.testing.assert_close(run(file, given), wanted, rtol=1e-4, atol=1e-5)
    if is_live:  # what is exported is the adapted model, and not its base
        with torch.no_grad(), model.adapters_disabled():
            assert (model(**given).logits - wanted).abs().max() > 1e-3
    with pytest.raises(AdapterFileError, match="is there already"):
        export_onnx(model, file)
    with pytest.raises(AdapterFileError, match=r"ends in \.onnx"):
        export_onnx(model, tmp_path / "model.pt")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if allowed("linear", v)])
def test_torch_export_takes_every_variant_live(variant: str) -> None:
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


class _NoNumber(torch.nn.Module):
    """A model whose second output is no number, and another in what is exported."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": x + 1, "b": x * (2.0 if torch.compiler.is_exporting() else float("nan"))}


def test_an_output_that_is_no_number_is_a_difference(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with pytest.raises(EngineError, match="differ by nan"):
        export_onnx(_NoNumber(), tmp_path / "a.onnx", {"x": torch.ones(2, 3)})
    assert not any(tmp_path.iterdir())
