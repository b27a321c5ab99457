"""What trackers get of adapters beside the loss: right numbers in the right place, and nothing else changes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_lora import LoRAConfig, LoRAModel, add_lora

from . import trainings
from .cases import FLOAT_COVER, adapted
from .peek import KINDS, LF, LoRA, lora_scalars, own_tensor
from .trainings import bert

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

QUERY = "encoder.layer.N.attention.self.query"


def trainer(model: nn.Module, out: Path, report_to: str = "tensorboard", **changes: object) -> Trainer:
    settings = {"max_steps": 4, "logging_steps": 2, "save_strategy": "no", "report_to": report_to}
    return trainings.trainer(model, out, **{**settings, **changes})


def added(layer: nn.Module, adapter: LoRA) -> Tensor:
    """Return what an adapter adds to its weight as a (..., out, in) matrix of float64, written out in full."""
    weight = own_tensor(layer, adapter.parameter).detach().double()
    if not hasattr(adapter, "magnitude") and getattr(layer, "groups", 1) == 1:
        return KINDS[adapter.kind].matrix(adapter.effective(weight).detach() - weight)
    return adapter.scaling * adapter.product().detach().double()


def by_svd(model: LoRAModel) -> dict[str, float]:
    """Return "quantity/group" -> value, from full singular value decompositions."""
    found: dict[str, list[float]] = {}
    for module, layer in model._lora.layers.items():
        for adapter in layer.carried("default").values():
            if not isinstance(adapter, LoRA) or adapter.product_of_factors() is None:  # not a product that is added
                continue
            words = ["N" if word.isdigit() and i else word for i, word in enumerate(module.split("."))]
            group = ".".join([*words, *([adapter.parameter] if adapter.parameter != "weight" else [])])
            values = torch.linalg.svdvals(added(layer, adapter))
            weight = KINDS[adapter.kind].matrix(own_tensor(layer, adapter.parameter).detach().double())
            share, norm = values / values.sum(-1, keepdim=True), values.square().sum(-1).sqrt()
            rank = (-(share * (share + 1e-300).log()).sum(-1)).exp()
            relative = norm / weight.flatten(-2).norm(dim=-1)
            for quantity, value in {"norm": norm, "relative_norm": relative, "effective_rank": rank}.items():
                found.setdefault(f"{quantity}/{group}", []).append(float(value.mean()))
    return {name: sum(values) / len(values) for name, values in found.items()}


def assert_same(scalars: dict[str, float], model: LoRAModel, prefix: str = "lora/default") -> None:
    wanted = {f"{prefix}/{name}": value for name, value in by_svd(model).items()}
    got = {name: value for name, value in scalars.items() if "/magnitude/" not in name}
    assert got.keys() == wanted.keys()
    assert got == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize(("kind", "variant"), FLOAT_COVER)
def test_every_kind_and_variant_is_measured_as_a_full_decomposition_would(kind: str, variant: str) -> None:
    model = adapted(kind, variant)
    assert_same(lora_scalars(model), model)


def test_a_mean_over_layers_of_two_shapes_is_the_mean_over_all() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 6))
    model = add_lora(net, LoRAConfig(r=3, target_modules=["0", "1", "2"], init_lora_weights=False))
    norms = [added(layer, layer.carried("default")["weight"]).norm() for layer in model._lora.layers.values()]
    assert lora_scalars(model)["lora/default/norm/N"] == pytest.approx(float(sum(norms)) / 3, rel=1e-5)


def test_the_effective_rank_counts_directions() -> None:
    assert LF.effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert LF.effective_rank(torch.tensor([[5.0, 0.0], [0.0, 0.0]])).tolist() == [1, 0]
    a = torch.eye(2, 6)
    b = torch.tensor([[1.0, 2.0]]).repeat(5, 1)  # both of A's rows go the same way
    assert LF.effective_rank(LF.singular_values(a, b)) == pytest.approx(1, abs=1e-9)


def test_the_magnitude_of_dora_is_measured_against_the_weights_rows() -> None:
    model = adapted("linear", "dora")
    layer = model._lora.layers["layer"]
    rows = own_tensor(layer, "weight").detach().norm(dim=1)
    wanted = (layer.carried("default")["weight"].magnitude.detach() / rows - 1).abs().mean()
    assert lora_scalars(model)["lora/default/magnitude/layer"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("variant", ["lora", "pissa", "dora"])
def test_a_fresh_adapter_adds_nothing_and_has_no_rank(variant: str) -> None:
    net = nn.Sequential(nn.Linear(6, 8))
    start = {"dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}, "lora": {}}[variant]
    scalars = lora_scalars(add_lora(net, LoRAConfig(r=2, target_modules=["0"], **start)))
    assert scalars.pop("lora/default/magnitude/N", 0.0) == pytest.approx(0, abs=1e-6)
    assert set(scalars.values()) == {0.0}
    assert len(scalars) == 3


def test_only_adapters_that_are_active_and_train_are_measured() -> None:
    model = add_lora(nn.Sequential(nn.Linear(6, 8)), LoRAConfig(r=2, target_modules=["0"]), "one")
    model.add_adapter(LoRAConfig(r=2, target_modules=["0"]), "two")
    assert {name.split("/")[1] for name in lora_scalars(model)} == {"two"}
    model.set_adapter(["one", "two"])
    assert {name.split("/")[1] for name in lora_scalars(model)} == {"one", "two"}
    model.disable_adapters()
    assert lora_scalars(model) == {}


def test_a_factor_that_is_not_whole_here_is_left_out_and_one_that_is_not_finite_is_nan() -> None:
    net = nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(8, 6), "c": nn.Linear(6, 8)})
    model = add_lora(net, LoRAConfig(r=2, target_modules=["a", "b", "c"], init_lora_weights=False))
    a, b, _ = (layer.carried("default")["weight"] for layer in model._lora.layers.values())
    a.lora_A.data.fill_(math.inf)
    scalars = lora_scalars(model)
    assert math.isnan(scalars["lora/default/norm/a"])
    assert scalars["lora/default/norm/c"] > 0  # of a's shape, and measured with it
    b.lora_A.data = torch.empty(0)  # as ZeRO-3 leaves it between steps
    assert {name.split("/")[-1] for name in lora_scalars(model)} == {"a", "c"}

    class Shard(Tensor):  # as FSDP's DTensor, whose shape is the whole one's
        pass

    a.lora_B = nn.Parameter(a.lora_B.detach().as_subclass(Shard))
    assert {name.split("/")[-1] for name in lora_scalars(model)} == {"c"}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value) of a TensorBoard folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (run,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    read = accumulator.EventAccumulator(str(run))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_shows_every_target_beside_the_loss(tmp_path: Path) -> None:
    model = bert(target_modules=["query", "key", "output.dense"], modules_to_save=["classifier"])
    trainer(model, tmp_path).train()
    found = events(tmp_path)
    scalars = {tag: values for tag, values in found.items() if tag.startswith("train/lora/")}
    assert {step for values in scalars.values() for step, _ in values} == {2, 4}
    assert [step for step, _ in found["train/loss"]] == [2, 4]
    assert_same({tag: values[-1][1] for tag, values in scalars.items()}, model, "train/lora/default")
    report = [line.split()[0] for line in model.targets_report().splitlines() if "r=2" in line]
    assert {tag.split("norm/bert.")[-1].replace("N", "*") for tag in scalars if "/norm/" in tag} == {
        target.removeprefix("bert.") for target in report
    }
    assert found[f"train/lora/default/norm/bert.{QUERY}"][0] != found[f"train/lora/default/norm/bert.{QUERY}"][1]


def test_nothing_else_of_the_training_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, untold = bert(), bert()
    runs, ends = [], []
    for model, report_to in ((told, "tensorboard"), (untold, "none")):
        run = trainer(model, tmp_path / report_to, report_to, save_strategy="steps", save_steps=4)
        run.train()
        ends.append(torch.get_rng_state())
        runs.append(run)
    assert all(torch.equal(a, b) for a, b in zip(told.state_dict().values(), untold.state_dict().values(), strict=True))
    assert torch.equal(*ends)
    timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    histories = [[{k: v for k, v in e.items() if k not in timed} for e in run.state.log_history] for run in runs]
    assert histories[0] == histories[1]
    saved = json.loads((tmp_path / "tensorboard" / "checkpoint-4" / "trainer_state.json").read_text())
    assert not [key for entry in saved["log_history"] for key in entry if "lora" in key]
    assert not [cb for cb in runs[0].callback_handler.callbacks if "on_log" in cb.__dict__]
    printed = capsys.readouterr().out
    assert "'loss'" in printed
    assert "lora" not in printed


def test_a_tracker_is_called_once_a_log_and_keeps_a_method_of_its_own(tmp_path: Path) -> None:
    run = trainer(bert(), tmp_path)
    (tracker,) = [cb for cb in run.callback_handler.callbacks if type(cb).__name__ == "TensorBoardCallback"]
    seen: list[dict[str, float]] = []
    tracker.on_log = own = lambda *args, logs, **kwargs: seen.append(dict(logs))
    run.train()
    assert tracker.on_log is own
    assert [("loss" in logs, any(name.startswith("lora/") for name in logs)) for logs in seen] == [
        (True, True), (True, True), (False, False),
    ]  # fmt: skip


def test_a_model_without_adapters_is_reported_as_before(tmp_path: Path) -> None:
    trainer(bert().unload(), tmp_path).train()
    assert not [tag for tag in events(tmp_path) if "lora" in tag]


def test_wandb_gets_them_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    places = {name: str(tmp_path) for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", **places}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    model = bert()
    try:
        trainer(model, tmp_path / "out", "wandb").train()
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
    assert summary["train/global_step"] == 4
    assert_same({name: value for name, value in summary.items() if "lora" in name}, model, "train/lora/default")
