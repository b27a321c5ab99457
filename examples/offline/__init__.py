"""What --smoke uses instead of the Hub: tiny models with random weights; tokenizers trained on the example's text."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM


def roberta(folder: str, texts: list[str]) -> str:
    """Write a RoBERTa of two layers and its tokenizer into a folder, and return the folder."""
    inner = _bytes(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
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
