"""LoRAConfig: PEFT's fields, defaults and file, read and written with nothing lost, refused with a reason."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
from peft.utils.other import get_pattern_key

from hf_lora import LoRAConfig
from hf_lora.errors import AdapterFileError, ConfigError, LoRAError

COMMUNITY = Path(__file__).parents[2] / "shared" / "data" / "community_configs"
ADAPTER_CONFIG = "adapter_config.json"
OTHER_METHODS = {8, 66, *range(77, 91)} - {80}
NOT_PEFT = {1, 27, 28, 44, 45}
NOT_BUILT = {74: "use_bdlora="}


def _in_peft(directory: Path) -> dict[str, Any]:
    """Return what PEFT makes of a directory's adapter_config.json; lists without order or repeats, as PEFT uses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of keys that it does not know
        values = peft.LoraConfig.from_pretrained(str(directory)).to_dict()
    return {key: sorted(set(v)) if isinstance(v, list | set) else v for key, v in values.items()}


def _written(text: str, directory: Path) -> Path:
    directory.mkdir()
    (directory / ADAPTER_CONFIG).write_bytes(text.encode())
    return directory


def _assert_peft_reads_the_same_again(text: str, tmp_path: Path) -> LoRAConfig:
    """Read a config file here, save it again, and compare what PEFT makes of the two."""
    given = _written(text, tmp_path / "given")
    config = LoRAConfig.from_pretrained(given)
    config.save_pretrained(tmp_path / "saved")
    assert _in_peft(tmp_path / "saved") == _in_peft(given)
    assert LoRAConfig.from_pretrained(tmp_path / "saved").to_dict() == config.to_dict()
    return config


# --- files that people published ------------------------------------------------------------------------------------

published = pytest.mark.skipif(not COMMUNITY.is_dir(), reason="the community configs are not part of the repository")
FILES = sorted(COMMUNITY.glob("*.json"))


@published
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_published_config_saved_again_means_the_same_to_peft_or_is_refused_with_the_reason(
    path: Path, tmp_path: Path
) -> None:
    number, text = int(path.name[:2]), path.read_bytes().decode()
    if number not in OTHER_METHODS | NOT_PEFT | NOT_BUILT.keys():
        _assert_peft_reads_the_same_again(text, tmp_path)
        return
    with pytest.raises(ConfigError) as refused:
        LoRAConfig.from_pretrained(path)
    method = json.loads(text).get("peft_type")
    reason = NOT_BUILT.get(number) or (repr(method) if method else "peft_type")
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)


# --- the same traits, in small ----------------------------------------------------------------------------------------

MINIMAL = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def _json(**changes: Any) -> str:
    return json.dumps({**MINIMAL, **changes})


READABLE = {
    "minimal": _json(),
    "blank lines and a final newline": "\n\n" + json.dumps(MINIMAL, indent=4) + "\n\n",
    "duplicated targets": _json(target_modules=["q_proj", "v_proj", "q_proj"]),
    "an expression": _json(target_modules=r"^model\.layers\.\d+\.(q|v)_proj$"),
    "all-linear": _json(target_modules="all-linear"),
    "excluded by expression": _json(exclude_modules=r".*vision.*"),
    "parameters": _json(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]),
    "patterns": _json(rank_pattern={"to_v": 2, r"layers\.0\..*": 3}, alpha_pattern={"to_v": 32, "to_q": 0.5}),
    "variants": _json(use_dora=True, use_rslora=True),
    "initialisation": _json(init_lora_weights="pissa_niter_16"),
    "an initialisation of PEFT's own": _json(init_lora_weights="orthogonal"),
    "tied weights kept": _json(ensure_weight_tying=True),
    "an initialisation from a decomposition": _json(init_lora_weights="olora"),
    "an initialisation from data": _json(init_lora_weights="eva", eva_config={"rho": 2.0}),
    "one layer": _json(layers_to_transform=3, layers_pattern="layers"),
    "tokens by name": _json(trainable_token_indices={"embed_tokens": [3, 1]}),
    "lora bias": _json(lora_bias=True),
    "a revision": _json(revision="unsloth", base_model_name_or_path="/home/me/model"),
    "a class": _json(auto_mapping={"base_model_class": "T", "parent_library": "p", "unsloth_fixed": True}, task_type=None),
    "an empty base": _json(base_model_name_or_path=None, inference_mode=True, fan_in_fan_out=True),
    "removed keys that are empty": _json(enable_lora=None, merge_weights=False),
    "features that are off": _json(use_bdlora=None, use_qalora=False, alora_invocation_tokens=None, layer_replication=None),
    "features of the start": _json(loftq_config={"loftq_bits": 4}, qalora_group_size=32, megatron_core="other.core"),
    "a development version": _json(peft_version="0.18.2.dev0@UNKNOWN"),
    "everything null": _json(
        **dict.fromkeys(("task_type", "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("trait", READABLE)
def test_a_config_file_means_the_same_to_peft_once_saved_again(trait: str, tmp_path: Path) -> None:
    _assert_peft_reads_the_same_again(READABLE[trait], tmp_path)


# What is refused, and what the message must say.
REFUSED = {
    "another method": (_json(peft_type="IA3"), "'IA3'"),
    "no method": (json.dumps({"r": 8}), "peft_type"),
    "an unknown key that is set": (_json(brand_new_switch=True), "brand_new_switch=True.*ignore_unknown"),
    "a feature that is not built": (_json(use_qalora=True), "use_qalora=True.* build"),
    "replicated layers": (_json(layer_replication=[[0, 4], [2, 5]]), "layer_replication="),
    "an activated adapter": (_json(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens="),
    "an initialisation that nobody knows": (_json(init_lora_weights="x"), "init_lora_weights='x'.*pissa_niter_N"),
    "an unknown key of this PEFT": (_json(new_size=16, peft_version="0.21.2"), "new_size=16"),
    "an unknown key of an older PEFT": (_json(new_size=16, peft_version="0.18.0"), "new_size=16"),
    "a newer PEFT's key that changes the scaling": (_json(alpha_scale=2.0, peft_version="0.99.0"), "alpha_scale=2.0"),
    "a newer PEFT's key that changes DoRA": (_json(use_dora=True, dora_rows=True, peft_version="1.0"), "dora_rows=True"),
    "a newer PEFT's formula": (_json(use_new_formula=True, peft_version="0.99.0"), "use_new_formula=True"),
    "an initialisation that moves the base": (_json(init_lora_weights="corda"), "'corda'.*path_initial_model_for_weight_conversion"),
}  # fmt: skip


@pytest.mark.parametrize("trait", REFUSED)
def test_a_config_file_that_cannot_be_followed_is_refused_with_reason_and_name(trait: str, tmp_path: Path) -> None:
    text, message = REFUSED[trait]
    directory = _written(text, tmp_path / "given")
    with pytest.raises(ConfigError, match=message) as refused:
        LoRAConfig.from_pretrained(directory)
    assert str(directory / ADAPTER_CONFIG) in str(refused.value)
    assert isinstance(refused.value, LoRAError)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("key", [{"new_size": 16}, {"new_config": {"a": 1}}, {"new_list": [1]}, {"new_word": "x"}])
@pytest.mark.parametrize("version", ["0.22.0", "0.99.0", "1.0.0.dev0"])
def test_an_unknown_key_of_a_newer_peft_is_said_and_kept(key: dict[str, Any], version: str, tmp_path: Path) -> None:
    directory = _written(_json(**key, peft_version=version), tmp_path / "given")
    with pytest.warns(UserWarning, match=rf"PEFT {version}.*{next(iter(key))}=") as said:
        config = LoRAConfig.from_pretrained(directory)
    assert len(said) == 1
    assert key.items() <= config.to_dict().items()
    LoRAConfig.from_pretrained(directory, ignore_unknown=True)  # says nothing


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"LORA"', "{'peft_type': 'LORA'}", "\x80\x81"])
def test_a_file_that_is_no_json_object_is_an_error_of_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterFileError, match="JSON"):
        LoRAConfig.from_pretrained(tmp_path)


def test_a_missing_file_is_an_error_of_the_file_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=ADAPTER_CONFIG):
        LoRAConfig.from_pretrained(tmp_path)


ODD_VALUES = ["x", "(", 5, -1, 0, 1.5, True, [1], ["q"], [["q"]], [None], {}, {"a": None}, {"a": "b"}, {"(": 1}, None]
FIELDS = [field.name for field in dataclasses.fields(LoRAConfig) if field.name != "other"]


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_field_raises_anything_but_a_config_error(field: str) -> None:
    for value in ODD_VALUES:
        try:
            config = LoRAConfig.from_dict({**MINIMAL, field: value})
        except ConfigError as error:
            assert field in str(error) or repr(value) in str(error)  # noqa: PT017 - either outcome is right
        else:
            json.dumps(config.to_dict())


# --- settings that cannot be right ------------------------------------------------------------------------------------

WRONG = [
    ({"r": 0}, "r=0"),
    ({"r": 8.0}, r"r=8\.0"),
    ({"r": True}, "r=True"),
    ({"lora_alpha": 0}, "lora_alpha=0"),
    ({"lora_dropout": 1.0}, r"lora_dropout=1\.0"),
    ({"bias": "some"}, "bias='some'.*lora_only"),
    ({"task_type": "CAUSAL"}, "task_type='CAUSAL'.*CAUSAL_LM"),
    ({"init_lora_weights": "pisa"}, "init_lora_weights='pisa'.*'pissa'"),
    ({"init_lora_weights": "pissa_niter_"}, "init_lora_weights='pissa_niter_'"),
    ({"init_lora_weights": "pissa_niter_129"}, "init_lora_weights='pissa_niter_129'.*at most 128"),
    ({"init_lora_weights": "pissa_niter_" + "9" * 5000}, "init_lora_weights='pissa_niter_9.*at most 128"),
    ({"init_lora_weights": 1.5}, r"init_lora_weights=1\.5"),
    ({"modules_to_save": "classifier"}, r"modules_to_save='classifier'.*\['classifier'\]"),
    ({"target_parameters": "experts.up"}, r"target_parameters='experts\.up'"),
    ({"target_modules": [3]}, r"target_modules=\[3\]"),
    ({"target_modules": []}, "target_modules .*'auto'"),
    ({"target_modules": "(q_proj"}, r"target_modules: '\(q_proj'"),
    ({"exclude_modules": "*vision"}, r"exclude_modules: '\*vision'"),
    ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]=0"),
    ({"rank_pattern": {"(q": 4}}, r"rank_pattern: '\(q'"),
    ({"alpha_pattern": {"q_proj": -1}}, r"alpha_pattern\['q_proj'\]=-1"),
    ({"target_modules": ".*q", "layers_to_transform": [0]}, "layers_to_transform .*target_modules"),
    ({"layers_pattern": "h"}, "layers_pattern .*layers_to_transform"),
    ({"lora_bias": True, "use_dora": True}, "lora_bias=True .*use_dora=True"),
    ({"lora_bias": True, "init_lora_weights": "pissa"}, "lora_bias=True .*init_lora_weights=.*'pissa'"),
    ({"lora_bias": True, "bias": "all"}, "lora_bias=True .*bias='all'"),
    ({"use_dora": "false"}, "use_dora='false'"),  # and not taken for true
    ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
    ({"target_modules": ["q"], "layers_to_transform": ["0"]}, "layers_to_transform"),
    ({"trainable_token_indices": [1.5]}, "trainable_token_indices"),
]


@pytest.mark.parametrize(
    ("settings", "message"), WRONG, ids=[", ".join(f"{k}={v}" for k, v in s.items()) for s, _ in WRONG]
)
def test_a_setting_that_cannot_be_right_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        LoRAConfig().copy(**settings)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        LoRAConfig(r=0, lora_dropout=2.0, bias="x", task_type="y", init_lora_weights="z")
    assert all(name in str(refused.value) for name in ("r=0", "lora_dropout=2.0", "bias='x'", "task_type='y'", "'z'"))


# --- PEFT's fields ------------------------------------------------------------------------------------------------------


def test_every_default_is_pefts_but_that_targets_are_found_out() -> None:
    """A PEFT config without targets falls back on a table of models, or raises; here it is "auto"."""
    ours, theirs = LoRAConfig(), peft.LoraConfig()
    shared = {f.name for f in dataclasses.fields(ours)} & {f.name for f in dataclasses.fields(theirs)}
    different = {name for name in shared if getattr(ours, name) != getattr(theirs, name)}
    assert different == {"target_modules"}
    assert (ours.target_modules, theirs.target_modules) == ("auto", None)
    assert {f.name for f in dataclasses.fields(ours)} - shared == {"other", "seed"}
    assert ours.peft_type == theirs.peft_type.value


# What PEFT 0.10 knows; it raises TypeError at any other key, and 0.14 then reads another config.
KNOWN_LONG = {
    "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r",
    "revision", "target_modules", "task_type", "alpha_pattern", "rank_pattern", "loftq_config", "megatron_config",
    "megatron_core", "use_rslora", "use_dora", "layer_replication",
}  # fmt: skip
OLD_SETTINGS: list[dict[str, Any]] = [
    {},
    {"r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
    {"target_modules": ["q"], "use_rslora": True, "use_dora": True, "bias": "all", "init_lora_weights": "gaussian"},
    {"target_modules": ["q"], "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 2.5}, "revision": "main"},
    {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "h", "auto_mapping": {"a": "b"}},
]


@pytest.mark.parametrize("settings", OLD_SETTINGS, ids=range(len(OLD_SETTINGS)))
def test_the_file_has_only_keys_that_old_pefts_know_and_pefts_values(settings: dict[str, Any], tmp_path: Path) -> None:
    """But where a setting that they do not have is used. Read back from PEFT's own file it is the same again."""
    LoRAConfig(**settings).save_pretrained(tmp_path / "ours")
    peft.LoraConfig(**settings).save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (json.loads((tmp_path / who / ADAPTER_CONFIG).read_text()) for who in ("ours", "theirs"))
    assert ours.keys() <= KNOWN_LONG & theirs.keys()
    differ = {"inference_mode"} | (set() if "target_modules" in settings else {"target_modules"})
    assert {k: v for k, v in ours.items() if theirs[k] != v and k not in differ} == {}
    LoRAConfig.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / ADAPTER_CONFIG).read_text())
    assert again.keys() - {"peft_version"} == ours.keys()


@pytest.mark.parametrize(
    "settings", [{"lora_bias": True}, {"exclude_modules": ["x"]}, {"target_parameters": ["x"]},
                 {"trainable_token_indices": [1]}, {"ensure_weight_tying": True}]
)  # fmt: skip
def test_a_newer_setting_that_is_used_is_in_the_file(settings: dict[str, Any]) -> None:
    assert settings.items() <= LoRAConfig(target_modules=["q"], **settings).to_dict().items()


def test_presets_that_no_other_tool_knows_are_not_written() -> None:
    assert LoRAConfig(target_modules="auto").to_dict()["target_modules"] is None
    assert LoRAConfig(target_modules="attention").to_dict()["target_modules"] is None
    assert LoRAConfig(target_modules="all-linear").to_dict()["target_modules"] == "all-linear"


SETTINGS: list[dict[str, Any]] = [
    {"r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
    {"target_modules": {"v_proj", "q_proj"}, "use_rslora": True, "bias": "all"},
    {"target_modules": ("a", "b", "a"), "use_dora": True, "init_lora_weights": "pissa"},
    {"target_modules": r".*\.q_proj", "exclude_modules": ["x"], "init_lora_weights": False},
    {"target_parameters": ["experts.down_proj"], "target_modules": [], "rank_pattern": {"down_proj": 2}},
    {"target_modules": ["q"], "layers_to_transform": range(2, 5), "layers_pattern": "h", "alpha_pattern": {"q": 2.5}},
    {"target_modules": ["q"], "trainable_token_indices": {"wte": [1, 2]}, "lora_bias": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_a_config_saved_here_reads_back_equal_here_and_through_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    config = LoRAConfig(**settings)
    config.save_pretrained(tmp_path / "ours")
    again = LoRAConfig.from_pretrained(tmp_path / "ours")
    assert again.to_dict() == config.to_dict()
    peft.LoraConfig.from_pretrained(str(tmp_path / "ours")).save_pretrained(str(tmp_path / "theirs"))
    through = LoRAConfig.from_pretrained(tmp_path / "theirs")
    assert _unordered(through.to_dict()) == _unordered({**config.to_dict(), "peft_version": peft.__version__})


def _unordered(values: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(v) if isinstance(v, list) else v for key, v in values.items()}


NAMES = [
    f"model.layers.{n}"
    for n in ("0.self_attn.q_proj", "10.self_attn.q_proj", "0.mlp.up_proj", "0.mlp.experts.down_proj")
]
NAMES += ["q_proj", "xq_proj"]
PATTERNS = ["q_proj", r"layers\.0\..*", r".*\.up_proj", "self_attn", r"^model\.layers\.0\.mlp.*", "experts.down_proj", "(q|up)_proj"]  # fmt: skip


@pytest.mark.parametrize("use_rslora", [False, True])
def test_rank_and_alpha_patterns_pick_what_peft_picks(use_rslora: bool) -> None:
    for first in PATTERNS:
        for second in PATTERNS:
            ranks, alphas = ({first: 3, second: 5}, {second: 7, first: 11})
            config = LoRAConfig(rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora)
            for name in NAMES:
                r = ranks.get(get_pattern_key(ranks.keys(), name), 8)
                alpha = alphas.get(get_pattern_key(alphas.keys(), name), 8)
                assert config.rank_of(name) == r
                assert config.scaling_of(name) == alpha / (r**0.5 if use_rslora else r)
