"""Mistakes people make: each is an error that names cause and cure and leaves everything as it was, or is put right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import peft
import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import BertForMaskedLM, BertForSequenceClassification, ResNetConfig, Trainer
from transformers import ResNetForImageClassification as ResNet

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready
from hf_lora.errors import AdapterMismatchError, AdapterNameError, AdapterStateError, ConfigError, ModelError

from .peek import check_start, widen_masters
from .tiny import IDS, VOCAB, tiny
from .trainings import gpt2 as trained_gpt2
from .trainings import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),  # dynamo's
]
LORA = LoRAConfig(r=2, target_modules=["c_attn"])


def snapshot(model: nn.Module) -> list[tuple[str, type, bool, torch.Tensor]]:
    """Return what an error must leave as it was: names, classes, what trains, values."""
    owners = {n: type(m) for n, m in model.named_modules()}
    return [(n, owners[n.rpartition(".")[0]], p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()]


def same(before: list, after: list) -> bool:
    return all(x[:3] == y[:3] and torch.equal(x[3], y[3]) for x, y in zip(before, after, strict=True))


# --- what is adapted ------------------------------------------------------------------------------------------------


def changed(change: Callable[[Any], object]) -> nn.Module:
    """Return a GPT-2 after a change in place."""
    model = tiny("gpt2")
    change(model)
    return model


def wrapped(part: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(part)


THEIRS: dict[str, Any] = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
NOT_PLAIN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "by PEFT": (lambda: peft.get_peft_model(tiny("gpt2"), peft.LoraConfig(**THEIRS)), "PEFT.*merge_and_unload.*unload"),
    "by prompt tuning": (
        lambda: peft.get_peft_model(tiny("gpt2"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "PEFT.*unload",
    ),
    "by Transformers' add_adapter": (
        lambda: changed(lambda m: m.add_adapter(peft.LoraConfig(**THEIRS))), r"PEFT.*transformer\.h\.0\.attn\.c_attn",
    ),
    "with IA3": (
        lambda: peft.inject_adapter_in_model(peft.IA3Config(**THEIRS, feedforward_modules=[]), tiny("gpt2")),
        r"PEFT.*transformer\.h\.0\.attn\.c_attn",
    ),
    "part of a LoRAModel": (lambda: trained_gpt2().transformer, r"h\.0\.attn\.c_attn .*add_adapter"),
    "around a LoRAModel": (
        lambda: changed(lambda m: add_lora(m.transformer, LORA)), r"'transformer'.*model\.transformer\.add_adapter",
    ),
    "with a compiled layer": (
        lambda: changed(lambda m: m.transformer.h.insert(1, torch.compile(m.transformer.h.pop(1), backend="eager"))),
        r"transformer\.h\.1 .*layer\.compile",
    ),
    "data parallel": (lambda: nn.DataParallel(tiny("gpt2")), r"DataParallel.*model\.module"),
    "with a checkpointed layer": (
        lambda: changed(lambda m: m.transformer.h.insert(0, wrapped(m.transformer.h.pop(0)))),
        r"transformer\.h\.0 .*checkpointing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_model_that_is_not_plain_is_refused_with_the_way_out_and_left_as_it_was(name: str, tmp_path: Path) -> None:
    trained_gpt2().save_pretrained(tmp_path)
    make, told = NOT_PLAIN[name]
    model = make()
    kind, before = type(model), snapshot(model)
    for attach in (
        lambda: LoRAModel.from_model(model, LORA, "other"),
        lambda: add_lora(model, LORA, "other"),
        lambda: LoRAModel.from_pretrained(tmp_path, base_model=model, adapter_name="other"),
    ):
        with pytest.raises(ModelError, match=told):
            attach()
        assert type(model) is kind
        assert same(before, snapshot(model))


def test_a_lora_model_takes_a_further_adapter_and_says_so_where_the_name_is_taken(tmp_path: Path) -> None:
    model = trained_gpt2()
    model.save_pretrained(tmp_path)
    before = snapshot(model)
    for again in (
        lambda: LoRAModel.from_model(model, LORA),
        lambda: LoRAModel.from_pretrained(tmp_path, base_model=model),
        lambda: model.add_adapter(LORA),
    ):
        with pytest.raises(AdapterNameError, match="'default' already"):
            again()
        assert same(before, snapshot(model))
    assert LoRAModel.from_model(model, LORA, "second") is model
    assert LoRAModel.from_pretrained(tmp_path, base_model=model, adapter_name="third") is model
    assert list(model.peft_config) == ["default", "second", "third"]


def test_an_adapter_on_a_layer_of_another_lora_model_inside_is_refused_and_not_trained_along(tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LORA)
    add_lora(model.transformer.h[0].mlp, LoRAConfig(r=2, target_modules=["c_fc"]))
    with pytest.raises(AdapterStateError, match=r"h\.0\.mlp\.c_fc .*unload"):
        model.add_adapter(LoRAConfig(r=2, target_modules=["c_fc"]), "more")
    with pytest.raises(AdapterStateError, match=r"1 layers .*transformer\.h\.0\.mlp\.c_fc"):
        trainer(model, tmp_path).train()


def test_peft_and_trl_cannot_wrap_a_lora_model_a_second_time() -> None:
    model = trained_gpt2()
    before = snapshot(model)
    theirs = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    for wrap in (
        lambda: peft.get_peft_model(model, theirs),
        lambda: peft.inject_adapter_in_model(theirs, model),
        lambda: peft.inject_adapter_in_model(theirs, model.transformer),
    ):
        with pytest.raises(ModelError, match="add_adapter.*peft_config="):
            wrap()
        assert same(before, snapshot(model))
    assert peft.get_peft_model(model.unload(), theirs)(IDS).logits.shape[-1] == VOCAB


def test_pefts_config_means_what_it_means_there_and_anything_else_is_refused() -> None:
    theirs = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn"], task_type="CAUSAL_LM", lora_dropout=0.1)
    model = LoRAModel.from_model(tiny("gpt2"), theirs)
    model.add_adapter(theirs, "second")
    for config in model.peft_config.values():
        assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (3, 5, 0.1, "CAUSAL_LM")
        assert type(config.task_type) is str
    for wrong, way in (({"r": 3}, r"LoRAConfig\(\*\*"), (8, "LoRAConfig")):
        plain = tiny("gpt2")
        before = snapshot(plain)
        with pytest.raises(ConfigError, match=f"{type(wrong).__name__} .*{way}"):
            LoRAModel.from_model(plain, wrong)
        assert same(before, snapshot(plain))
    with pytest.raises(ConfigError, match="IA3"):
        LoRAModel.from_model(tiny("gpt2"), peft.IA3Config(target_modules=["c_attn"]))


# --- torch.compile before attaching ---------------------------------------------------------------------------------


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.3)


COMPILED: dict[str, Callable[[Any], list[nn.Module]]] = {
    "in place": lambda m: [m],
    "by layer": lambda m: list(m.transformer.h),
    "one linear layer": lambda m: [m.transformer.h[0].attn.c_attn],
    "wrapped": lambda m: [],
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_model_compiled_before_attaching_stays_compiled_and_computes_with_adapters(name: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    base, plain = tiny("gpt2"), tiny("gpt2")
    for module in (modules := COMPILED[name](base)):
        module.compile(backend=counter)
    given: Any = base if modules else torch.compile(base, backend=counter)
    before = given(IDS).logits
    torch.manual_seed(1)
    model = LoRAModel.from_model(given, LoRAConfig(r=2))
    torch.manual_seed(1)
    want = LoRAModel.from_model(plain, LoRAConfig(r=2))
    assert model is base
    counter.frame_count = 0
    assert torch.equal(model(IDS).logits, before)
    assert counter.frame_count >= 1
    moved(model)
    moved(want)
    after = want(IDS).logits
    assert not torch.allclose(after, before)
    torch.testing.assert_close(model(IDS).logits, after)
    torch.testing.assert_close(given(IDS).logits, after)
    if given is not base:
        trainer(model, tmp_path, max_steps=1).train()
        assert (tmp_path / "checkpoint-1" / "adapter_model.safetensors").is_file()
    torch._dynamo.reset()


# --- training what does not train, or would be lost -----------------------------------------------------------------


# what is done to the model; what is told; what cures it
Does = Callable[[Any], object]
CANNOT_TRAIN: dict[str, tuple[Does, str, Does | None]] = {
    "merged": (lambda m: m.merge_adapter(), r"\['default'\].*unmerge_adapter", lambda m: m.unmerge_adapter()),
    "disabled": (lambda m: m.disable_adapters(), "enable_adapters", lambda m: m.enable_adapters()),
    "everything thawed": (
        lambda m: m.requires_grad_(True), r"28 weights .*wte\.weight.*modules_to_save.*requires_grad_",
        lambda m: (m.requires_grad_(False), m.set_adapter(["default"])),
    ),
    "a norm thawed": (
        lambda m: m.transformer.ln_f.requires_grad_(True), r"2 weights .*transformer\.ln_f\.weight, transformer\.ln_f\.bias",
        None,
    ),
    "everything frozen": (
        lambda m: m.requires_grad_(False), r"set_adapter\(\['default'\]\)", lambda m: m.set_adapter(["default"]),
    ),
    "none active": (
        lambda m: m.set_adapter([]), r"\['default'\].*\[\].*set_adapter", lambda m: m.set_adapter("default"),
    ),
    "merged and thawed": (
        lambda m: (m.merge_adapter(), m.transformer.ln_f.requires_grad_(True)), "unmerge_adapter.*2 weights", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("late", [False, True], ids=["before the Trainer", "after it"])
@pytest.mark.parametrize("name", CANNOT_TRAIN)
def test_the_trainer_refuses_before_the_first_step(name: str, late: bool, tmp_path: Path) -> None:
    model = trained_gpt2()
    spoil, told, cure = CANNOT_TRAIN[name]
    run = trainer(model, tmp_path / "a", max_steps=2) if late else None
    spoil(model)
    run = run or trainer(model, tmp_path / "a", max_steps=2)
    before = snapshot(model)
    with pytest.raises(AdapterStateError, match=told):
        run.train()
    assert same(before, snapshot(model))
    assert run.optimizer is None
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())
    with pytest.raises(AdapterStateError, match=told):
        check_ready(model)
    if late and cure is not None:
        cure(model)
        run.train()
        straight = trained_gpt2()
        trainer(straight, tmp_path / "b", max_steps=2).train()
        assert same(snapshot(model), snapshot(straight)), "the cure trains to other bits"


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
def test_a_column_of_adapter_names_is_not_left_out_without_a_word(kind: Callable[[Any], Any], tmp_path: Path) -> None:
    model = trained_gpt2()
    model.add_adapter(LORA, "other")
    model.set_requires_grad(["default", "other"])
    row = IDS[0].tolist()
    rows = [{"input_ids": row, "labels": row, "adapter_names": name} for name in ("default", "other") * 2]

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        tensors = {key: torch.tensor([item[key] for item in items]) for key in ("input_ids", "labels")}
        return {**tensors, "adapter_names": [item["adapter_names"] for item in items]}

    run = trainer(model, tmp_path, max_steps=1)
    run.train_dataset, run.data_collator, before = kind(rows), collate, snapshot(model)
    with pytest.raises(AdapterStateError, match="remove_unused_columns=False"):
        run.train()
    run.args.remove_unused_columns = False
    run.train()
    moved = [
        key for (key, *_, old), (*_, new) in zip(before, snapshot(model), strict=True) if not torch.equal(old, new)
    ]
    assert all(any(f"adapters.{name}.weight.lora_B" in key for key in moved) for name in ("default", "other"))


def test_new_heads_biases_and_token_rows_are_no_false_alarm(tmp_path: Path) -> None:
    tiny("bert_mlm", BertForMaskedLM).save_pretrained(tmp_path / "base")
    config = LoRAConfig(r=2, task_type="SEQ_CLS", bias="all", trainable_token_indices=[3, 4])
    model = LoRAModel.from_pretrained(tmp_path / "base", config, num_labels=2)
    trainer(model, tmp_path / "run", max_steps=2).train()


def test_weights_that_train_and_are_offloaded_are_refused() -> None:
    model = trained_gpt2()
    cpu_offload(model, torch.device("cpu"))
    with pytest.raises(AdapterStateError, match="offloaded"):
        check_ready(model)


def resnet(**settings: object) -> LoRAModel:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic")
    lora = LoRAConfig(r=2, target_modules=["convolution"], **settings)
    return LoRAModel.from_model(ResNet(config), lora)


def test_running_averages_that_no_adapter_would_hold_are_refused_and_saved_on_request(tmp_path: Path) -> None:
    pixels = torch.randn(8, 3, 16, 16)

    def run(model: LoRAModel) -> Trainer:
        found = trainer(model, tmp_path / "run", max_steps=2, remove_unused_columns=False)
        found.train_dataset = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(pixels)]
        return found

    with pytest.raises(AdapterStateError, match="averages.*'normalization'"):
        run(resnet()).train()
    model = resnet(modules_to_save=["normalization"])
    run(model).train()
    model.eval().save_pretrained(tmp_path / "adapter")
    again = LoRAModel.from_pretrained(tmp_path / "adapter", base_model=resnet().unload().eval())
    assert torch.equal(again(pixels).logits, model(pixels).logits)
    still = resnet()
    for module in still.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    check_ready(still)


# --- masters in half precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_that_a_cast_narrowed_train_as_float32_masters(dtype: torch.dtype, tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, modules_to_save=["ln_f"]))
    model.add_adapter(LORA, "idle")
    model.set_adapter("default")
    model.to(dtype)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {dtype}
    run = trainer(model, tmp_path, max_steps=2)
    with pytest.warns(UserWarning, match="^6 .*float32.*dtype="):
        run.train()
    after = dict(model.named_parameters())
    assert all(after[n] is p and p.dtype == torch.float32 for n, p in trained.items())
    assert all(p.dtype == dtype for n, p in after.items() if n not in trained)
    state = next(iter(run.optimizer.state.values()))
    assert state["exp_avg"].dtype == torch.float32


def test_a_gradient_scaler_takes_the_masters_of_a_float16_base_and_refuses_cast_ones() -> None:
    def step(model: LoRAModel) -> None:
        model.train()
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer, scaler = torch.optim.SGD(params, lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
        with torch.autocast("cpu", torch.float16):
            loss = model(IDS, labels=IDS).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)

    base = {"bias": "all", "modules_to_save": ["ln_f"]}
    step(LoRAModel.from_model(tiny("gpt2").half(), LoRAConfig(r=2, **base)))
    cast = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, **base)).half()
    with pytest.raises(ValueError, match="FP16"):
        step(cast)
    assert widen_masters(cast) > 0
    assert widen_masters(cast) == 0
    step(cast)


def test_a_float16_file_trains_on_as_float32(tmp_path: Path) -> None:
    trained_gpt2().half().save_pretrained(tmp_path)
    model = LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2").half(), is_trainable=True, check_base=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*adapter weights that train were in half precision:UserWarning")
def test_a_cast_model_resumes_in_the_same_bits_as_its_masters_are_widened_before_they_are_read(tmp_path: Path) -> None:
    models = []
    for resumed in (None, str(tmp_path / "checkpoint-2")):
        models.append(trained_gpt2().bfloat16())
        trainer(models[-1], tmp_path, max_steps=4).train(resume_from_checkpoint=resumed)
    assert same(snapshot(models[0]), snapshot(models[1]))


def test_evaluating_in_half_precision_before_training_costs_no_master(tmp_path: Path) -> None:
    run = trainer(trained_gpt2(), tmp_path, max_steps=2, bf16_full_eval=True)
    run.evaluate()
    with pytest.warns(UserWarning, match="float32"):
        run.train()
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}


# --- FSDP1 ----------------------------------------------------------------------------------------------------------


def test_fsdp1_that_flattens_adapters_with_frozen_weights_is_refused_before_it_wraps(tmp_path: Path) -> None:
    run = trainer(trained_gpt2(), tmp_path)
    run.is_fsdp_enabled = True
    plugin = run.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=1, use_orig_params=False)
    with pytest.raises(AdapterStateError, match="use_orig_params=False.*FSDP2.*use_orig_params=True"):
        run.train()
    assert run.optimizer is None
    for plugin.fsdp_version, plugin.use_orig_params in ((1, True), (2, None)):
        check_start(run, run.model)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_labels(tmp_path: Path) -> Path:
    tiny("bert_mlm", BertForMaskedLM).save_pretrained(tmp_path / "base")
    config = LoRAConfig(r=2, task_type="SEQ_CLS")
    LoRAModel.from_pretrained(tmp_path / "base", config, num_labels=3).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_labels_that_do_not_fit_the_adapters_head_are_refused_with_both_numbers(three_labels: Path) -> None:
    def five() -> BertForSequenceClassification:
        base = three_labels.parent / "base"
        return BertForSequenceClassification.from_pretrained(base, num_labels=5)

    loaded = five()
    lora = LoRAModel.from_model(five(), LoRAConfig(r=2, task_type="SEQ_CLS"))
    before = snapshot(loaded), snapshot(lora)
    for load in (
        lambda: LoRAModel.from_pretrained(three_labels, num_labels=5),
        lambda: LoRAModel.from_pretrained(three_labels, id2label={i: str(i) for i in range(5)}),
        lambda: LoRAModel.from_pretrained(three_labels, base_model=loaded),
        lambda: lora.load_adapter(three_labels, "other"),
        lambda: lora.load_weights(three_labels),
    ):
        with pytest.raises(AdapterMismatchError, match="num_labels=5.*num_labels=3"):
            load()
    assert not isinstance(loaded, LoRAModel)
    assert same(before[0], snapshot(loaded))
    assert same(before[1], snapshot(lora))
    assert list(lora.peft_config) == ["default"]
    assert LoRAModel.from_pretrained(three_labels).num_labels == 3


def test_num_labels_without_a_task_is_refused_where_the_checkpoints_class_has_no_labels(three_labels: Path) -> None:
    base = three_labels.parent / "base"
    with pytest.raises(ModelError, match="num_labels=5 .*BertForMaskedLM.*task_type='SEQ_CLS'"):
        LoRAModel.from_pretrained(base, LoRAConfig(r=2), num_labels=5)
    named = LoRAModel.from_pretrained(base, LoRAConfig(r=2), num_labels=5, auto_class=BertForSequenceClassification)
    assert named.num_labels == 5


# --- checked and right ----------------------------------------------------------------------------------------------


def test_auto_find_batch_size_and_a_model_in_eval_mode_train_to_the_same_bits(tmp_path: Path) -> None:
    model, plain = trained_gpt2(), trained_gpt2()
    trainer(model.eval(), tmp_path / "a", max_steps=2, auto_find_batch_size=True).train()
    trainer(plain, tmp_path / "b", max_steps=2).train()
    assert same(snapshot(model), snapshot(plain))


def test_an_average_of_the_weights_follows_the_adapter() -> None:
    model = trained_gpt2()
    average = torch.optim.swa_utils.AveragedModel(model)
    moved(model)
    average.update_parameters(model)
    average.update_parameters(model)
    assert average.module._lora is not model._lora
    assert not torch.equal(average.module(IDS).logits, tiny("gpt2")(IDS).logits)
