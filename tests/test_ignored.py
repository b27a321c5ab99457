"""What is asked for is done, refused with the nearest name, or warned of: nothing is left out without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from hf_lora import LoRAConfig, LoRAModel, add_lora, check_ready, metrics
from hf_lora.errors import (
    AdapterNameError,
    AdapterStateError,
    ArgumentError,
    ConfigError,
    ModelError,
    TargetError,
)

from .tiny import IDS, edit_config, tiny

# --- entries of patterns and lists ----------------------------------------------------------------------------------

# The model, the config's settings, what the error says.
IDLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a rank of no layer": ("bert", {"rank_pattern": {"quary": 4}}, r"rank_pattern: 'quary' .*'query'"),
    "an alpha of no layer": ("bert", {"alpha_pattern": {"vlaue": 4}}, r"alpha_pattern: 'vlaue' .*'value'"),
    "one key of several": ("llama", {"rank_pattern": {"q_proj": 4, "v_porj": 2}}, r"'v_porj' .*'v_proj'"),
    "a key with an anchor": ("llama", {"rank_pattern": {"^q_proj": 4}}, r"'\^q_proj' .*whole words"),
    "a full name with a typo": ("llama", {"alpha_pattern": {"model.layers.0.self_atn.q_proj": 4}}, "matches no adapted"),
    "a layer that there is not": ("llama", {"rank_pattern": {r"layers\.7\..*": 4}}, "matches no adapted layer"),
    "a layer that is not adapted": ("llama", {"rank_pattern": {"k_proj": 4}}, r"'k_proj' .*targets leave out"),
    "an excluded layer": ("llama", {"rank_pattern": {"v_proj": 4}, "exclude_modules": ["v_proj"]}, r"'v_proj'"),
    "a key behind a wider one": ("llama", {"rank_pattern": {"q_proj": 4, "layers.1.self_attn.q_proj": 2}}, "earlier key"),
    "patterns of a parameter": (
        "mixtral", {"target_parameters": ["experts.down_proj"], "rank_pattern": {"experts.dwon_proj": 4}}, "'down_proj'",
    ),
    "patterns and nothing adapted": ("bert", {"target_modules": [], "trainable_token_indices": [3], "rank_pattern": {"query": 4}}, "targets leave out"),
    "an exclusion": ("bert", {"exclude_modules": ["quary"]}, r"exclude_modules: 'quary' .*'query'"),
    "an exclusion among others": ("bert", {"target_modules": "all-linear", "exclude_modules": ["key", "valu"]}, "'valu'"),
    "an exclusion by expression": ("bert", {"exclude_modules": r".*\.quary"}, r"quary' matches nothing .*'query'"),
    "a string for a list": ("bert", {"exclude_modules": "query"}, r"full name\. Write a list, \['query'\]"),
    "a container": ("bert", {"exclude_modules": ["layer.0"]}, r"'layer.0' .*nothing inside"),
    "a container by expression": ("bert", {"exclude_modules": "bert.encoder"}, r"'bert.encoder' .*nothing inside"),
    "a saved module without values": ("bert", {"modules_to_save": ["classifier", "dropout"]}, r"\['dropout'\] match modules without param"),
    "layers without the parameter": (
        "mixtral", {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.down_proj"], "layers_to_transform": [0]},
        "'layers.1.mlp.experts.down_proj' match nothing in layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", IDLE)
def test_an_entry_that_would_change_nothing_is_refused_on_every_way(what: str) -> None:
    name, settings, told = IDLE[what]
    config = LoRAConfig(r=2, **settings)
    lora = LoRAModel.from_model(tiny(name), LoRAConfig(r=2))
    for attach in (
        lambda: LoRAModel.from_model(tiny(name), config),
        lambda: add_lora(tiny(name), config),
        lambda: lora.add_adapter(config, "second"),
    ):
        with pytest.raises(TargetError, match=told):
            attach()
    assert list(lora.peft_config) == ["default"]


WORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "a narrow key before a wide one": ("llama", {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 4}}),
    "two keys that say the same": ("llama", {"rank_pattern": {"q_proj": 4, "layers.1.self_attn.q_proj": 4}}),
    "a head that is left out anyway": ("llama", {"target_modules": "all-linear", "exclude_modules": ["lm_head"]}),
    "an expression for what is inside": ("bert", {"exclude_modules": r".*layer\.0\..*"}),
    "biases that a saved module has": (
        "bert",
        {"bias": "all", "modules_to_save": ["bert"], "target_modules": ["classifier"]},
    ),
    "an attention's own name": ("clip", {"target_modules": ["q_proj"], "alpha_pattern": {"q_proj": 4}}),
}


@pytest.mark.parametrize("what", WORKS)
def test_an_entry_that_changes_something_or_nothing_by_right_is_taken(what: str) -> None:
    name, settings = WORKS[what]
    LoRAModel.from_model(tiny(name), LoRAConfig(r=2, **settings))


def test_layers_are_chosen_of_parameters_too_and_the_file_names_them(tmp_path: Path) -> None:
    config = LoRAConfig(
        r=2, target_modules=["q_proj"], target_parameters=["experts.down_proj"], layers_to_transform=[-1]
    )
    model = LoRAModel.from_model(tiny("mixtral"), config.copy(init_lora_weights=False))
    assert {name.split(".")[2] for name in model._lora.layers} == {"1"}
    assert model.peft_config["default"].target_parameters == ["model.layers.1.mlp.experts.down_proj"]
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(tiny("mixtral"), str(tmp_path)).eval()
    for other in (LoRAModel.from_pretrained(tmp_path, base_model=tiny("mixtral")), theirs):
        torch.testing.assert_close(other(IDS).logits, model(IDS).logits)


def test_an_entry_that_is_saved_whole_as_well_is_told() -> None:
    with pytest.warns(UserWarning, match="target_modules: 'lm_head' .*modules_to_save.*trains in full"):
        LoRAModel.from_model(
            tiny("llama"), LoRAConfig(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
        )


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [("llama", {"bias": "all"}, "LlamaForCausalLM has no bias"), ("qwen2", {"target_modules": ["o_proj"], "bias": "lora_only"}, "no adapted")],
)  # fmt: skip
def test_biases_to_train_where_there_are_none_are_told(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.warns(UserWarning, match=f"bias='.*': {told}"):
        LoRAModel.from_model(tiny(name), LoRAConfig(**settings))


def test_of_a_file_such_keys_are_told_and_the_adapter_is_the_same(tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, rank_pattern={"quary": 8}, alpha_pattern={"q_porj": 3}, exclude_modules=["nowhere"])
    with pytest.warns(UserWarning, match="the adapter's config: ") as told:
        again = LoRAModel.from_pretrained(tmp_path, base_model=tiny("llama"))
    assert [word in str(w.message) for w, word in zip(told, ("'quary'", "'q_porj'"), strict=True)] == [True, True]
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("settings", [{"layers_to_transform": [0]}, {"exclude_modules": r".*layers\.1\..*"}], ids=str)
def test_layers_that_a_file_s_config_leaves_out_act_and_are_told(settings: dict[str, Any], tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("llama"), LoRAConfig(r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, **settings)
    with pytest.warns(UserWarning, match=r"leave out model\.layers\.1\.self_attn\.q_proj, and 1 more.*PEFT would drop"):
        again = LoRAModel.from_pretrained(tmp_path, base_model=tiny("llama"))
    assert torch.equal(again(IDS).logits, model(IDS).logits)


# --- calls and methods ----------------------------------------------------------------------------------------------


def test_a_model_of_ones_own_that_takes_such_an_argument_gets_it() -> None:
    class Own(nn.Sequential):
        def forward(self, x: torch.Tensor, adapter_names: list[str] | None = None) -> torch.Tensor:
            self.seen = adapter_names
            return super().forward(x)

    model = add_lora(Own(nn.Linear(2, 2)), LoRAConfig(r=1, target_modules=["0"]))
    model(torch.zeros(1, 2), adapter_names=["x"])
    assert model.seen == ["x"]


Does = Callable[[Any], object]
# What is asked for; what the error says.
ASKED: dict[str, tuple[Does, str]] = {
    "merging safely": (lambda m: m.merge_and_unload(safe_merge=True), "safe_merge: .*verify="),
    "a progress bar": (lambda m: m.merge_and_unload(progressbar=True), "progressbar: there is no"),
    "merging safely in place": (lambda m: m.merge_adapter(safe_merge=True), "safe_merge: .*verify="),
    "a typo": (lambda m: m.merge_and_unload(dtyp=torch.float32), "did you mean dtype="),
    "adapters by weight": (lambda m: m.set_adapter(adapter_weights=[1.0]), "adapter_weights: "),
    "PEFT's word for a config": (lambda m: m.add_adapter(peft_config=LoRAConfig(), adapter_name="b"), "peft_config: did you mean adapter_config="),
    "a verify that is a word": (lambda m: m.merge_adapter(verify="x"), "verify='x'.*0.01"),
    "a verify that is a flag": (lambda m: m.merge_adapter(verify=True), "verify=True.*0.01"),
    "no dtype": (lambda m: m.merge_and_unload(dtype="flaot32"), "'flaot32' is no dtype"),
    "a dtype that is none": (lambda m: m.merge_and_unload(dtype="nn"), "'nn' is no dtype"),
    "no adapter": (lambda m: m.set_adapter(None), "None .*disable_adapters"),
    "a number for an adapter": (lambda m: m.merge_adapter(5), "5 is given where adapters are named"),
    "another order": (lambda m: m.add_adapter("b", LoRAConfig()), r"str .*\(config, name\)"),
    "a dict for a config": (lambda m: m.add_adapter({"r": 2}, "b"), r"dict .*LoRAConfig\(\*\*"),
    "pickles": (lambda m: m.save_pretrained("x", safe_serialization=False), "safe_serialization=False"),
    "another layout": (lambda m: m.save_pretrained("x", save_peft_format=False), "save_peft_format=False"),
    "another file name": (lambda m: m.save_pretrained("x", variant="fp16"), "variant='fp16'"),
    "one of several": (lambda m: m.save_pretrained("x", selected_adapters=["a"]), "selected_adapters: adapter_name="),
    "embeddings": (lambda m: m.save_pretrained("x", save_embedding_layers=True), "save_embedding_layers: .*modules_to_save"),
    "shards of a push": (lambda m: m.push_to_hub("a/b", max_shard_size="1GB"), "max_shard_size: an adapter is one file"),
    "a card of a list": (lambda m: m.save_pretrained("x", card_data=["mit"]), "card_data=.*dict"),
    "a device": (lambda m: m.load_adapter("x", torch_device="cpu"), r"torch_device: .*model\.to"),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_arguments_of_others_are_refused_with_the_word_for_them_here(
    what: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    ask, told = ASKED[what]
    with pytest.raises(ArgumentError, match=told):
        ask(model)
    assert not [*tmp_path.iterdir()]
    assert list(model.peft_config) == ["default"]
    assert issubclass(ArgumentError, TypeError)
    assert issubclass(ArgumentError, ValueError)


def test_what_loading_would_leave_out_is_refused(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny("gpt2").save_pretrained(base)
    LoRAModel.from_pretrained(base, LoRAConfig(r=2)).save_pretrained(adapter)
    load = LoRAModel.from_pretrained
    with pytest.raises(ArgumentError, match=r"is_trainable=False: .* is a base.* fresh"):
        load(base, LoRAConfig(r=2), is_trainable=False)
    for name in (base, adapter):
        with pytest.raises(ArgumentError, match="output_loading_info: "):
            load(name, output_loading_info=True)
        load(name, output_loading_info=False, is_trainable=None)
    with pytest.raises(TypeError, match="auto_class: these load a base"):
        load(adapter, base_model=tiny("gpt2"), auto_class="AutoModel")


def test_a_config_s_revision_is_its_own_base_s(tmp_path: Path) -> None:
    config = LoRAConfig(r=2, base_model_name_or_path="someone/else", revision="abc")
    tiny("gpt2").save_pretrained(tmp_path)
    for model in (
        LoRAModel.from_pretrained(tmp_path, config),
        AutoModelForCausalLM.from_pretrained(tmp_path, lora_config=config),
        LoRAModel.from_model(AutoModelForCausalLM.from_pretrained(tmp_path), config),
    ):
        got = model.peft_config["default"]
        assert (got.base_model_name_or_path, got.revision) == (str(tmp_path), None)


# What nothing reads: a field, a method that is not LoRA, what is not built.
OTHER = {"use_dora": True, "r": 4, "peft_type": "IA3", "layer_replication": [[0, 2]], "alora_invocation_tokens": [1]}


@pytest.mark.parametrize("key", OTHER)
def test_other_keys_are_others(key: str) -> None:
    with pytest.raises(ConfigError, match=f"other=.*{key}"):
        LoRAConfig(other={key: OTHER[key]})


def test_a_loramodel_is_not_called() -> None:
    for make in (lambda: LoRAModel(tiny("gpt2"), LoRAConfig()), LoRAModel):
        with pytest.raises(ArgumentError, match=r"from_model.*from_pretrained"):
            make()


def test_what_others_pass_and_means_nothing_here_is_taken(tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    model.save_pretrained(
        tmp_path, safe_serialization=True, save_peft_format=True, variant=None, max_shard_size="5GB", save_function=None,
        card_data={"license": "mit"},
    )  # fmt: skip
    assert "license: mit" in (tmp_path / "README.md").read_text()
    assert model.bfloat16().merge_and_unload(dtype="float32").dtype == torch.float32


def test_a_model_without_adapters_is_not_ready_and_one_around_a_loramodel_is_looked_into() -> None:
    with pytest.raises(ModelError, match="GPT2LMHeadModel has no adapters.*from_model"):
        check_ready(tiny("gpt2"))
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    around = nn.Sequential(model)
    check_ready(around)
    model.disable_adapters()
    with pytest.raises(AdapterStateError, match="enable_adapters"):
        check_ready(around)


# --- settings -------------------------------------------------------------------------------------------------------

SETTINGS = {
    "target_module": "'target_modules'", "alpha": "'lora_alpha'", "rank": "'r'", "R": "'r'", "dropout": "'lora_dropout'",
    "use_dorra": "'use_dora'", "LoRA_alpha": "'lora_alpha'", "layer_replication": "does not build", "peft_version": "other=",
    "xyzzy": "there are r, lora_alpha",
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_there_is_not_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name}.*{SETTINGS[name]}"):
        LoRAConfig(**{name: 4})


def test_numbers_and_arrays_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    config = LoRAConfig(
        r=np.int64(4), lora_alpha=np.float32(8), lora_dropout=torch.tensor(0.5), rank_pattern={"q": np.int32(2)},
        layers_to_transform=np.array([0, 1]), use_rslora=np.bool_(True), trainable_token_indices=[np.int64(3)],
        target_modules=["q"], base_model_name_or_path=tmp_path,
    )  # fmt: skip
    plain = LoRAConfig(
        r=4, lora_alpha=8.0, lora_dropout=0.5, rank_pattern={"q": 2}, layers_to_transform=[0, 1], use_rslora=True,
        trainable_token_indices=[3], target_modules=["q"], base_model_name_or_path=str(tmp_path),
    )  # fmt: skip
    assert config == plain
    assert config.to_json() == plain.to_json()
    for name in ("r", "lora_dropout"):
        with pytest.raises(ConfigError, match=name):
            LoRAConfig(**{name: np.float64(1.5)})


@pytest.mark.parametrize("value", [5, True, ["x"], {"x": 1}, 1.5])
@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision"])
def test_a_key_of_another_type_is_refused_when_the_file_is_read(key: str, value: object, tmp_path: Path) -> None:
    LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2)).save_pretrained(tmp_path)
    edit_config(tmp_path, **{key: value})
    with pytest.raises(ConfigError, match=key):
        LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"))


def test_a_list_of_metrics_is_each_of_them() -> None:
    assert repr(metrics(["accuracy", "f1"])) == repr(metrics("accuracy", "f1"))
    for wrong in (5, {"accuracy": 1}, [["accuracy"], 5]):
        with pytest.raises(ConfigError, match="no metric"):
            metrics(wrong)  # type: ignore[arg-type]


# --- late errors that come early ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a/b/c",
        "/a",
        "a/",
        "a//b",
        "a/ b",
        "../a",
        "a/..",
        "a\\b",
        "\0",
        "\ud800",
        " a",
        "a\n",
        "a:b",
        "x" * 101,
        "Default",
    ],
)
def test_a_name_that_can_be_no_folder_is_refused_when_the_adapter_is_added(name: str, tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    model.save_pretrained(tmp_path)
    for add in (lambda: model.add_adapter(LoRAConfig(r=2), name), lambda: model.load_adapter(tmp_path, name)):
        with pytest.raises(AdapterNameError, match="folder|dots") as told:
            add()
        str(told.value).encode()
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2"])
def test_more_directions_than_a_layer_has_are_refused(start: str) -> None:
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2))
    with pytest.raises(TargetError, match="1: init_lora_weights='pissa.* r=4 .* 2"):
        add_lora(net, LoRAConfig(r=4, init_lora_weights=start, target_modules=["0", "1"]))
    add_lora(net, LoRAConfig(r=4, init_lora_weights=start, target_modules=["0", "1"], rank_pattern={"1": 2}))


OF_A_PUSH = {"private": True, "commit_message": "a", "commit_description": "b", "repo_id": "me/x", "revision": "v1", "create_pr": True, "tags": ["a"]}  # fmt: skip


@pytest.mark.parametrize("name", OF_A_PUSH)
def test_what_is_said_of_a_push_and_none_is_asked_for_is_told(name: str, tmp_path: Path) -> None:
    model = LoRAModel.from_model(tiny("bert"), LoRAConfig(r=2))
    with pytest.warns(UserWarning, match=rf"save_pretrained\({name}=.*push_to_hub=True"):
        model.save_pretrained(tmp_path, **{name: OF_A_PUSH[name]})
    assert (tmp_path / "adapter_config.json").is_file()
