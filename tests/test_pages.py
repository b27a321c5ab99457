"""Every code block of the README and the docs runs, as pasted, in order; Hub names are tiny models made here."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from hf_lora import LoRAConfig, LoRAModel

from .hub import Hub
from .pages import PAGES, ROOT, blocks, run
from .peek import COMMANDS, cli
from .runs import write_base, write_rows
from .tiny import tiny

Names = dict[str, Any]
IMPORTS = """
import copy, itertools, datasets, hf_lora, huggingface_hub, optuna, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments, pipeline
from hf_lora import *
"""
WORDS = sorted(
    set(re.findall(r"[a-z]+", (ROOT / "README.md").read_text("utf-8").lower())) | {f"w{n}" for n in range(48)}
)
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the README's words."""
    words = [*SPECIAL.values(), *WORDS]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL, **settings)


def bert() -> Any:
    """Return a BERT as it is published: with the heads of its pre-training."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForPreTraining(BertConfig(**sizes, vocab_size=len(WORDS) + 4))


def decoder(family: str, **settings: Any) -> Any:
    """Return a decoder whose texts end after two tokens."""
    model = tiny(family, vocab_size=len(WORDS) + 4, **settings)
    model.generation_config.update(max_new_tokens=2, pad_token_id=0)
    return model


BASES: dict[str, Callable[[], Any]] = {
    "bert-base-uncased": bert,
    "gpt2": lambda: decoder("gpt2"),
    "Qwen/Qwen3-0.6B": lambda: decoder("qwen3", hidden_size=192, intermediate_size=192, num_hidden_layers=1),
}


def adapters(hub: Hub) -> Names:
    """What docs/adapters.md begins with: adapters of one base on the Hub, a tokenizer, a batch of four texts."""
    for name in ("me/summaries", "me/translations", "me/newer", "adapters/de"):
        torch.manual_seed(len(name))
        LoRAModel.from_pretrained("gpt2", LoRAConfig(r=2, init_lora_weights=False)).save_pretrained(name)
        hub.add(name, Path(name))
    by_words = tokenizer(padding_side="left")
    texts = ["w5 w6", "w7 w8", "w9 w10", "w11 w12"]
    batch = by_words(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    return {"tokenizer": by_words, "texts": texts, "batch": batch, "inputs": batch}


def rated(count: int = 8) -> Any:
    """Return rows of tokens with a label."""
    rows = [tokenizer()(f"w{n} w{n + 1} w{n + 2}") for n in range(count)]
    return datasets.Dataset.from_list([{**row, "labels": n % 2} for n, row in enumerate(rows)])


def published(hub: Hub, name: str, base: str = "gpt2", task: str = "CAUSAL_LM") -> None:
    """Put an adapter of random numbers on the Hub, and leave it in the folder "my-adapter"."""
    config = LoRAConfig(r=2, init_lora_weights=False, task_type=task)
    LoRAModel.from_pretrained(base, config).save_pretrained("my-adapter")
    tokenizer().save_pretrained("my-adapter")
    hub.add(name, Path("my-adapter"))


def saved(hub: Hub) -> Names:
    """What docs/hub.md begins with: a model with an adapter, its tokenizer, an adapter of somebody else's."""
    published(hub, "user/other")
    model = LoRAModel.from_pretrained("gpt2", LoRAConfig(r=2, init_lora_weights=False))
    torch.save(lora_of(model), "lora.pt")
    return {"tokenizer": tokenizer(), "model": model}


def lora_of(model: Any) -> Names:
    """Return a model's factors as `loralib.lora_state_dict` does."""
    return {key.replace(".weight", ""): value for key, value in model.get_adapter_state_dict().items()}


def training(hub: Hub) -> Names:
    """What docs/training.md begins with: a dataset in parts, arguments, a base, a module of no library."""
    published(hub, "me/adapter", "bert-base-uncased", "SEQ_CLS")
    args = TrainingArguments("run", max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True)
    loaded = AutoModelForCausalLM.from_pretrained("gpt2")
    parts = {"ds": rated(), "held_out": rated(4), "others": rated(6), "dataset": rated()}
    return {"loaded": loaded, "net": nn.Sequential(nn.Linear(4, 4)), "args": args, "tokenizer": tokenizer(), **parts}


def variants(hub: Hub) -> Names:
    """What docs/variants.md begins with: a base, batches of it, rows, and a fine-tune on the Hub."""
    base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
    tuned = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight.add_(0.1)
    tuned.save_pretrained("tuned")
    hub.add("me/tuned", Path("tuned"))
    batches = [{"input_ids": torch.randint(4, 48, (2, 7))} for _ in range(4)]
    return {"base": base, "loader": batches, "batches": batches, "dataset": rated(256).remove_columns("labels")}


def commands(hub: Hub) -> Names:
    """What docs/commands.md begins with: another run, and the base under its public name."""
    hub.add("org/base", Path("base"))
    assert (
        cli.main("hf-lora train --model base --train reviews.csv --output outputs/second --epochs 1".split()[1:]) == 0
    )
    return {}


def deploy(hub: Hub) -> Names:
    """What docs/deploy.md begins with: a run."""
    assert (
        cli.main("hf-lora train --model base --train reviews.csv --output outputs/reviews --epochs 1".split()[1:]) == 0
    )
    return {}


def after_deploy(names: Names, hub: Hub) -> None:
    assert Path("plain", "adapter_model.safetensors").is_file()
    assert Path("reviews.onnx").is_file()


def after_adapters(names: Names, hub: Hub) -> None:
    model, cache = names["model"], names["cache"]
    assert {*model.peft_config} == {"default", "fr", "a", "b", "both", "de"}
    assert (model.active_adapters(), cache.info().resident) == (["both"], 1)
    assert all(torch.count_nonzero(v) for k, v in model.get_adapter_state_dict("a").items() if "lora_B" in k)


def after_readme(names: Names, hub: Hub) -> None:
    assert Path("merged/model.safetensors").is_file()
    assert "adapter_model.safetensors" in hub.files("me/my-adapter")
    trained, by_peft = LoRAModel.from_pretrained("my-adapter"), names["model"]
    assert trained.get_adapter_state_dict().keys() == by_peft.get_adapter_state_dict().keys()
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        with trained.adapters_disabled():
            base = trained(input_ids=ids).logits
        logits = trained(input_ids=ids).logits
        assert not torch.equal(logits, base)
        torch.testing.assert_close(by_peft(input_ids=ids).logits, logits)


def after_commands(names: Names, hub: Hub) -> None:
    told = {line.rpartition(" | ")[2].split()[1] for line in names["commands"]}
    every = {command.__name__ for commands in COMMANDS.values() for command in commands}
    assert every - told <= {"chat"}
    assert Path("merged", "model.safetensors").is_file()


def nothing(*_: Any) -> Names:
    return {}


# What a page takes for given, and what must be so afterwards.
BEFORE: dict[str, Callable[[Hub], Names]] = {
    "adapters.md": adapters, "hub.md": saved, "training.md": training, "distributed.md": training,
    "variants.md": variants, "commands.md": commands, "deploy.md": deploy,
}  # fmt: skip
AFTER: dict[str, Callable[[Names, Hub], Any]] = {
    "adapters.md": after_adapters, "README.md": after_readme, "commands.md": after_commands,
    "deploy.md": after_deploy,
}  # fmt: skip
RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run_in_order_as_written(
    page: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, base in BASES.items():
        base().save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        hub.add(name, tmp_path / name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # PEFT looks at it each time
    write_base(Path("base"))
    write_rows(Path("reviews.csv"))
    write_rows(Path("new.csv"), 10)
    names: Names = {"__name__": page.stem}
    if page != PAGES[0]:
        exec(IMPORTS, names)
    names.update(BEFORE.get(page.name, nothing)(hub))
    names["commands"] = run(page, names, monkeypatch)
    AFTER.get(page.name, nothing)(names, hub)


def test_a_block_that_does_not_run_says_why_and_such_are_few() -> None:
    said = [
        block.code.partition("\n")[0] for page in PAGES for block in blocks(page) if block.code.startswith("# not run")
    ]
    assert not [line for line in said if not re.fullmatch(r"# not run: .{8,}", line)]
    assert len(said) < 12


def test_every_python_block_is_python() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                ast.parse(block.code)
