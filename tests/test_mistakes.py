"""Mistakes people make: each is an error that names cause and cure and leaves everything as it was, or is put right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, ResNetConfig, Trainer
from transformers import ResNetForImageClassification as ResNet

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready
from hf_lora.errors import AdapterMismatchError, AdapterNameError, AdapterStateError, ConfigError, ModelError

from .peek import _check_fsdp, widen_masters
from .tiny import IDS, VOCAB, tiny
from .trainings import gpt2 as trained_gpt2
from .trainings import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT's
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


def by_peft() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny("gpt2"), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))


def by_prompt_tuning() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny("gpt2"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def by_transformers_add_adapter() -> nn.Module:
    peft = pytest.importorskip("peft")
    model = tiny("gpt2")
    model.add_adapter(peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    return model


def with_ia3() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)
    return peft.inject_adapter_in_model(config, tiny("gpt2"))


def part_of_a_lora_model() -> nn.Module:
    return trained_gpt2().transformer


def around_a_lora_model() -> nn.Module:
    model = tiny("gpt2")
    add_lora(model.transformer, LORA)
    return model


def with_a_compiled_layer() -> nn.Module:
    model = tiny("gpt2")
    model.transformer.h[1] = torch.compile(model.transformer.h[1], backend="eager")
    return model


def data_parallel() -> nn.Module:
    return nn.DataParallel(tiny("gpt2"))


def checkpoint_wrapped() -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny("gpt2")
    model.transformer.h[0] = checkpoint_wrapper(model.transformer.h[0])
    return model


NOT_PLAIN: dict[Callable[[], nn.Module], str] = {
    by_peft: "PEFT.*wrapper.*merge_and_unload",
    by_prompt_tuning: "PEFT.*wrapper.*unload",
    by_transformers_add_adapter: r"PEFT.*transformer\.h\.0\.attn\.c_attn",
    with_ia3: r"PEFT.*transformer\.h\.0\.attn\.c_attn",
    part_of_a_lora_model: r"h\.0\.attn\.c_attn .*add_adapter",
    around_a_lora_model: r"'transformer'.*model\.transformer\.add_adapter",
    with_a_compiled_layer: r"transformer\.h\.1 .*layer\.compile",
    data_parallel: r"DataParallel.*model\.module",
    checkpoint_wrapped: r"transformer\.h\.0 .*checkpointing",
}


@pytest.mark.parametrize("make", NOT_PLAIN, ids=lambda make: make.__name__)
def test_a_model_that_is_not_plain_is_refused_with_the_way_out_and_left_as_it_was(make, tmp_path: Path) -> None:
    trained_gpt2().save_pretrained(tmp_path)
    model = make()
    kind, before = type(model), snapshot(model)
    for attach in (
        lambda: LoRAModel.from_model(model, LORA, "other"),
        lambda: add_lora(model, LORA, "other"),
        lambda: LoRAModel.from_pretrained(tmp_path, base_model=model, adapter_name="other"),
    ):
        with pytest.raises(ModelError, match=NOT_PLAIN[make]):
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
    peft = pytest.importorskip("peft")
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
    peft = pytest.importorskip("peft")
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


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def by_layer(model: nn.Module) -> nn.Module:
    for layer in model.transformer.h:
        layer.compile(backend="eager")
    return model


def one_linear(model: nn.Module) -> nn.Module:
    model.transformer.h[0].attn.c_attn.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, in_place, by_layer, one_linear], ids=lambda f: f.__name__)
def test_a_model_compiled_and_run_before_attaching_computes_with_its_adapter(compiled, tmp_path: Path) -> None:
    torch._dynamo.reset()
    base, plain = tiny("gpt2"), tiny("gpt2")
    given = compiled(base)
    before = given(IDS).logits
    torch.manual_seed(1)
    model = LoRAModel.from_model(given, LoRAConfig(r=2))
    torch.manual_seed(1)
    want = LoRAModel.from_model(plain, LoRAConfig(r=2))
    assert model is base
    assert torch.equal(model(IDS).logits, before)
    moved(model)
    moved(want)
    after = want(IDS).logits
    assert not torch.allclose(after, before)
    torch.testing.assert_close(model(IDS).logits, after)
    torch.testing.assert_close(given(IDS).logits, after)
    if compiled is whole:
        trainer(model, tmp_path, max_steps=1).train()
        assert (tmp_path / "checkpoint-1" / "adapter_model.safetensors").is_file()
    torch._dynamo.reset()


def test_a_compiled_model_stays_compiled() -> None:
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = LoRAModel.from_model(torch.compile(tiny("gpt2"), backend=counter), LoRAConfig(r=2))
    model(IDS)
    assert counter.frame_count >= 1
    torch._dynamo.reset()


# --- training what does not train, or would be lost -----------------------------------------------------------------


def merged(model: LoRAModel) -> None:
    model.merge_adapter()


def disabled(model: LoRAModel) -> None:
    model.disable_adapters()


def everything_thawed(model: LoRAModel) -> None:
    model.requires_grad_(True)


def a_norm_thawed(model: LoRAModel) -> None:
    model.transformer.ln_f.requires_grad_(True)


def everything_frozen(model: LoRAModel) -> None:
    model.requires_grad_(False)


def none_active(model: LoRAModel) -> None:
    model.set_adapter([])


def merged_and_thawed(model: LoRAModel) -> None:
    model.merge_adapter()
    model.transformer.ln_f.requires_grad_(True)


CANNOT_TRAIN: dict[Callable[[LoRAModel], None], str] = {
    merged: r"\['default'\].*unmerge_adapter",
    disabled: "enable_adapters",
    everything_thawed: r"28 weights .*wte\.weight.*modules_to_save.*requires_grad_",
    a_norm_thawed: r"2 weights .*transformer\.ln_f\.weight, transformer\.ln_f\.bias",
    everything_frozen: r"set_adapter\(\['default'\]\)",
    none_active: r"\['default'\].*\[\].*set_adapter",
    merged_and_thawed: "unmerge_adapter.*2 weights",
}


@pytest.mark.parametrize("late", [False, True], ids=["before the Trainer", "after it"])
@pytest.mark.parametrize("spoil", CANNOT_TRAIN, ids=lambda spoil: spoil.__name__)
def test_the_trainer_refuses_before_the_first_step(spoil, late: bool, tmp_path: Path) -> None:
    model = trained_gpt2()
    run = trainer(model, tmp_path) if late else None
    spoil(model)
    run = run or trainer(model, tmp_path)
    before = snapshot(model)
    with pytest.raises(AdapterStateError, match=CANNOT_TRAIN[spoil]):
        run.train()
    assert same(before, snapshot(model))
    assert run.optimizer is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(AdapterStateError, match=CANNOT_TRAIN[spoil]):
        check_ready(model)


CURES: dict[Callable[[LoRAModel], None], Callable[[LoRAModel], object]] = {
    merged: lambda m: m.unmerge_adapter(),
    disabled: lambda m: m.enable_adapters(),
    everything_thawed: lambda m: (m.requires_grad_(False), m.set_adapter(["default"])),
    everything_frozen: lambda m: m.set_adapter(["default"]),
    none_active: lambda m: m.set_adapter("default"),
}


@pytest.mark.parametrize("spoil", CURES, ids=lambda spoil: spoil.__name__)
def test_the_cure_that_the_error_names_trains_to_the_same_bits(spoil, tmp_path: Path) -> None:
    model, straight = trained_gpt2(), trained_gpt2()
    run = trainer(model, tmp_path / "a", max_steps=2)
    spoil(model)
    with pytest.raises(AdapterStateError):
        run.train()
    CURES[spoil](model)
    run.train()
    trainer(straight, tmp_path / "b", max_steps=2).train()
    assert same(snapshot(model), snapshot(straight))


def test_new_heads_biases_and_token_rows_are_no_false_alarm(tmp_path: Path) -> None:
    tiny("bert_mlm", BertForMaskedLM).save_pretrained(tmp_path / "base")
    config = LoRAConfig(r=2, task_type="SEQ_CLS", bias="all", trainable_token_indices=[3, 4])
    model = LoRAModel.from_pretrained(tmp_path / "base", config, num_labels=2)
    trainer(model, tmp_path / "run", max_steps=2).train()


def test_train_is_no_hindrance_to_merged_and_disabled_adapters_and_check_ready_refuses_them() -> None:
    model = trained_gpt2()
    with model.adapters_disabled():
        model.train()
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="unmerge_adapter"):
        check_ready(model.train())


def test_weights_that_train_and_are_offloaded_are_refused() -> None:
    model = trained_gpt2()
    cpu_offload(model, torch.device("cpu"))
    with pytest.raises(AdapterStateError, match="offloaded"):
        check_ready(model)


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixels, "labels": torch.tensor(index % 2)}


def resnet(**settings: object) -> LoRAModel:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic")
    lora = LoRAConfig(r=2, target_modules=["convolution"], **settings)
    return LoRAModel.from_model(ResNet(config), lora)


def test_running_averages_that_no_adapter_would_hold_are_refused_and_saved_on_request(tmp_path: Path) -> None:
    def run(model: LoRAModel) -> Trainer:
        found = trainer(model, tmp_path / "run", max_steps=2, remove_unused_columns=False)
        found.train_dataset = Images()
        return found

    with pytest.raises(AdapterStateError, match="averages.*'normalization'"):
        run(resnet()).train()
    model = resnet(modules_to_save=["normalization"])
    run(model).train()
    model.eval().save_pretrained(tmp_path / "adapter")
    again = LoRAModel.from_pretrained(tmp_path / "adapter", base_model=resnet().unload().eval())
    pixels = torch.stack([Images()[i]["pixel_values"] for i in range(4)])
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


def test_fsdp1_that_flattens_adapters_with_frozen_weights_is_refused_with_both_ways_out() -> None:
    with pytest.raises(AdapterStateError, match="use_orig_params=False.*FSDP2.*use_orig_params=True"):
        _check_fsdp(SimpleNamespace(fsdp_version=1, use_orig_params=False))
    _check_fsdp(SimpleNamespace(fsdp_version=1, use_orig_params=True))
    _check_fsdp(SimpleNamespace(fsdp_version=2, use_orig_params=None))


def test_the_trainer_asks_about_fsdp_before_it_wraps(tmp_path: Path) -> None:
    run = trainer(trained_gpt2(), tmp_path)
    run.is_fsdp_enabled = True
    run.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=1, use_orig_params=False)
    with pytest.raises(AdapterStateError, match="use_orig_params=False"):
        run.train()
    assert run.optimizer is None


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


def test_attaching_after_the_trainer_was_made_trains_and_saves_the_adapter_only(tmp_path: Path) -> None:
    model = tiny("gpt2")
    run = trainer(model, tmp_path, max_steps=2)
    torch.manual_seed(1)
    LoRAModel.from_model(model, LoRAConfig(r=2))
    run.train()
    names = {p.name for p in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names


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


def test_the_trainers_seam_starts_before_anything_is_wrapped() -> None:
    source = inspect.getsource(Trainer._inner_training_loop)
    wraps = [
        word for word in ("self._prepare_for_training(", "self.create_optimizer(", "_wrap_model(") if word in source
    ]
    assert wraps
    assert all(source.index("self.set_initial_training_values(") < source.index(word) for word in wraps)
    train = inspect.getsource(inspect.unwrap(Trainer.train))
    assert "self._inner_training_loop" in train
    assert train.index("call_model_init") < train.index("self._inner_training_loop")
