"""The README is short, its links lead somewhere, its commands are there, and its code runs as pasted, in order."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

from hf_lora import LoRAConfig, LoRAModel

from .hub import Hub
from .peek import cli
from .tiny import VOCAB, tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVE = ROOT / "examples" / "serve" / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = [code for language, code in BLOCK.findall(README) if language == "python"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_70_lines_of_120_columns() -> None:
    assert len(README.splitlines()) <= 70
    assert max(map(len, README.splitlines())) <= 120


@pytest.mark.parametrize("page", [*PAGES, SERVE], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_heading_and_every_python_block_is_python(page: Path) -> None:
    text, broken = page.read_text("utf-8"), []
    for link in (link for link in LINK.findall(BLOCK.sub("", text)) if "://" not in link):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken
    for language, code in BLOCK.findall(text):
        if language == "python":
            ast.parse(code)


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(README) if "://" not in link}
    assert not [page.name for page in PAGES[1:] if page.resolve() not in linked]


def test_every_command_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = re.findall(r"(?m)(?:^|`)make ([a-z]+)", "\n".join(page.read_text("utf-8") for page in PAGES))
    assert {"demo", "test"} <= set(named) <= targets
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    used = re.findall(r"(?m)(?:^|`)hf-lora ([a-z]+)", "\n".join(page.read_text("utf-8") for page in PAGES))
    assert {"push", "inspect"} <= set(used) <= set(commands)


def test_the_python_blocks_run_in_order_as_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("bert-base-uncased", small_bert(tmp_path / "bert"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # PEFT looks at it each time
    names: dict[str, Any] = {"__name__": "readme"}
    for number, code in enumerate(CODE):
        exec(compile(code, f"README.md, block {number}", "exec"), names)
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


def test_the_blocks_about_many_adapters_run_in_order_as_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    base = tiny("gpt2")
    base.generation_config.update(max_new_tokens=2, pad_token_id=0)
    base.save_pretrained("base")
    hub.add("me/base", Path("base"))
    for name in ("me/summaries", "me/translations", "me/newer", "adapters/de"):
        torch.manual_seed(len(name))
        made = LoRAModel.from_pretrained("me/base", LoRAConfig(r=2, init_lora_weights=False))
        made.save_pretrained(name)
        hub.add(name, Path(name))
    words = {f"w{index}": index for index in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w1", pad_token="w0", padding_side="left")
    texts = ["w5 w6", "w7 w8", "w9 w10", "w11 w12"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    names: dict[str, Any] = {"tokenizer": tokenizer, "texts": texts, "batch": batch, "inputs": batch}
    exec("import hf_lora, torch\nfrom transformers import pipeline\nfrom hf_lora import LoRAConfig, LoRAModel", names)
    for number, (_, code) in enumerate(BLOCK.findall((ROOT / "docs" / "adapters.md").read_text("utf-8"))):
        exec(compile(code, f"adapters.md, block {number}", "exec"), names)
    model, cache = names["model"], names["cache"]
    assert {*model.peft_config} == {"default", "fr", "a", "b", "both", "de"}
    assert (model.active_adapters(), cache.info().resident) == (["both"], 1)
    assert all(torch.count_nonzero(v) for k, v in model.get_adapter_state_dict("a").items() if "lora_B" in k)


def small_bert(folder: Path) -> Path:
    """Write a BERT of two layers and its tokenizer under the names that bert-base-uncased has."""
    found = re.findall(r"[a-z]+", "\n".join(CODE).lower())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(found))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    size = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    BertForPreTraining(BertConfig(**size, vocab_size=len(words))).save_pretrained(folder)
    return folder
