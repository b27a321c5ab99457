"""`hf-lora merge`: the files that merging in memory and saving would give, with one shard of them in memory."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from hf_lora import LoRAConfig, LoRAModel

from .cases import VARIANTS, move, settings_of, starts_from_data
from .peek import cli, load_run, merged_files, read_rows
from .quantising import is_here, read
from .runs import write_base, write_rows
from .tiny import tiny

Capture = pytest.CaptureFixture[str]
LINEAR = {"target_modules": "all-linear"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("bert", {**LINEAR, **settings_of(name)}) for name, s in VARIANTS.items() if not starts_from_data(s)},
    "patterns": ("llama", {**LINEAR, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 9}}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "conv1d-dora": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True}),
    "tied-table": ("gpt2", {"target_modules": ["wte"]}),
    "tied-head": ("bert_mlm", {"target_modules": ["decoder"]}),
    "token-rows": ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [1, 3]}),
    "saved": ("roberta", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "saved-table": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "experts": ("mixtral", {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "fused-experts": ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
    "pictures": ("vit", {**LINEAR}),
    "sounds": ("wav2vec2", {"target_modules": ["q_proj"]}),
    "both-sides": ("t5", {"target_modules": ["q", "v"]}),
}


def made(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a case's base into `base` and its adapter, which was moved away from its start, into `adapter`."""
    family, settings = CASES[name]
    tiny(family).to(dtype).save_pretrained(folder / "base")
    settings = settings if family == "bert" else {"r": 2, "lora_alpha": 3, **settings}
    model = LoRAModel.from_pretrained(str(folder / "base"), LoRAConfig(**settings), auto_class=type(tiny(family)))
    move(model, scale=0.1)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", CASES)
def test_the_files_are_those_of_merging_in_memory_and_saving(name: str, tmp_path: Path) -> None:
    adapter = made(name, tmp_path)
    LoRAModel.from_pretrained(adapter).merge_and_unload().save_pretrained(tmp_path / "whole", max_shard_size="12KB")
    merged_files.save_merged(LoRAModel.from_pretrained(adapter), tmp_path / "written", max_shard_size="12KB")
    assert files(tmp_path / "written") == files(tmp_path / "whole")
    assert files(tmp_path / "written")["config.json"]
    assert len(list((tmp_path / "written").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("name", ["lora", "dora", "saved", "tied-table", "experts"])
def test_so_they_are_of_a_half_precision_base_that_is_widened(name: str, tmp_path: Path) -> None:
    adapter = made(name, tmp_path, torch.bfloat16)
    whole = LoRAModel.from_pretrained(adapter).merge_and_unload(dtype=torch.float32)
    whole.save_pretrained(tmp_path / "whole")
    merged_files.save_merged(LoRAModel.from_pretrained(adapter), tmp_path / "written", "float32")
    assert files(tmp_path / "written") == files(tmp_path / "whole")
    assert json.loads((tmp_path / "written" / "config.json").read_text())["dtype"] == "float32"


def test_no_more_than_a_file_of_merged_weights_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, alive, most = made("patterns", tmp_path), weakref.WeakSet[Any](), []
    merged_by = merged_files.layers.merged_by

    def watched(*given: Any) -> dict[str, torch.Tensor]:
        values = merged_by(*given)
        alive.update(values.values())
        most.append(sum(tensor.nbytes for tensor in alive))
        return values

    model = LoRAModel.from_pretrained(adapter)
    monkeypatch.setattr(merged_files.layers, "merged_by", watched)
    gc.collect()
    merged_files.save_merged(model, tmp_path / "out", max_shard_size="4KB")
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 4
    assert len(most) == 14
    assert max(most) <= 4096 + 2048


def test_the_command_writes_a_model_with_its_tokenizer_that_transformers_loads_and_verifies_it(
    tmp_path: Path, capsys: Capture
) -> None:
    adapter = made("patterns", tmp_path)
    assert cli.main(["merge", str(adapter), str(tmp_path / "out" / "merged"), "--verify"]) == 0
    told = capsys.readouterr()
    assert "outputs differ by" in told.out
    assert "no tokenizer" in told.err or "has a tokenizer" in told.err
    both, merged = LoRAModel.from_pretrained(adapter), type(tiny("llama")).from_pretrained(tmp_path / "out" / "merged")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, both(ids).logits)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]
    with safe_open(tmp_path / "out" / "merged" / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora" in key]  # noqa: SIM118


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished `run` on a base in eight bits, and the `rows.csv` that it learnt."""
    folder = tmp_path_factory.mktemp("qlora")
    write_base(folder / "base", hidden_size=32, intermediate_size=64)
    write_rows(folder / "rows.csv")
    flags = "--quantize 8bit --epochs 3 --learning-rate 0.01 --threads 1 --batch-size 8"
    arguments = ["train", "--model", str(folder / "base"), "--train", str(folder / "rows.csv"), *flags.split()]
    assert cli.main([*arguments, "--output", str(folder / "run")]) == 0
    return folder


@pytest.mark.skipif(not is_here("bitsandbytes"), reason="bitsandbytes is not installed")
def test_the_command_packs_again_and_keeps_what_layers_make_of_rows(
    qlora: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["merge", str(qlora / "run"), str(tmp_path / "merged"), "--requantize"]
    rows = ["--calibration", str(qlora / "rows.csv")]
    assert cli.main([*arguments, *rows, "--verify", "--tolerance", "0.1"]) == 0
    told = capsys.readouterr()
    assert f"wrote {tmp_path / 'merged'}, packed by bitsandbytes; its outputs differ by" in told.out
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token == "[PAD]"
    run = load_run(str(qlora / "run"))
    batches = run.batches(list(read_rows(str(qlora / "rows.csv"), tmp_path)), "rows.csv")
    assert {len(batch["input_ids"]) for batch in batches} == {1}
    wanted = run.model.merge_and_unload(requantize=True, calibration=batches)
    packed = [name for name, module in wanted.named_modules() if type(module).__name__ == "Linear8bitLt"]
    assert packed
    assert all(torch.equal(read(again.get_submodule(name)), read(wanted.get_submodule(name))) for name in packed)


@pytest.mark.skipif(not is_here("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--calibration rows.csv", "give --requantize as well"),
        ("--requantize --dtype float32", "leave one of them out"),
        ("--requantize --verify", "say it with --tolerance"),
        ("--requantize --calibration nowhere.csv", "nowhere.csv"),
        ("--requantize --verify --tolerance 0", "differ by"),
    ],
)
def test_options_of_packing_that_do_not_fit_are_one_line_and_leave_nothing(
    options: str, told: str, qlora: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert cli.main(["merge", str(qlora / "run"), str(tmp_path / "out"), *options.split()]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not is_here("bitsandbytes"), reason="bitsandbytes is not installed")
def test_a_checkpoint_that_is_quantised_itself_merges_into_a_plain_model(qlora: Path, tmp_path: Path) -> None:
    given = {"num_labels": 2, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    AutoModelForSequenceClassification.from_pretrained(qlora / "base", **given).save_pretrained(tmp_path / "packed")
    config = LoRAConfig(r=2, init_lora_weights=False, task_type="SEQ_CLS")
    model = LoRAModel.from_pretrained(tmp_path / "packed", config, num_labels=2)
    model.save_pretrained(tmp_path / "adapter")
    assert cli.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--dtype", "bfloat16"]) == 0
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    want = model.merge_and_unload(dtype=torch.bfloat16)
    assert again.dtype is torch.bfloat16
    got = again.state_dict()
    assert all(torch.equal(value, got[name]) for name, value in want.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{adapter}", "out", "--requantize"], "is not quantised"),
        (["{adapter}", "{taken}"], "there already"),
        (["{adapter}", "out", "--max-shard-size", "lots"], "500MB"),
        (["{adapter}", "out", "--verify", "--tolerance", "0"], "differ by"),
        (["nowhere", "out"], "nowhere"),
        (["{adapter}", "{file}/out"], "file"),
    ],
)
def test_what_cannot_be_merged_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    adapter = made("patterns", tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "file").touch()
    names = {"adapter": adapter, "taken": tmp_path / "base", "file": tmp_path / "file"}
    assert cli.main(["merge", *(argument.format(**names) for argument in arguments)]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.splitlines()[-1].startswith("hf-lora: ")
    assert not list(Path().iterdir())
