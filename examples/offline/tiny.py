"""Tiny models with random weights, which `--smoke` takes in the place of a model of the Hub."""

from collections.abc import Iterable

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

SPECIAL = {"pad": "<pad>", "eos": "</s>", "bos": "<s>", "unk": "<unk>", "mask": "<mask>"}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
_WIDTH = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}
_DECODER = {**_WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True}
_SOUND = {"num_mel_bins": 32, "max_source_positions": 50, "max_target_positions": 32, "d_model": 64}
_SIDES = {"layers": 2, "attention_heads": 2, "ffn_dim": 128}
# By the type in its config: the class, what it writes around a text, and its sizes.
TINY = {
    "gpt2": ("AutoModelForCausalLM", "$A", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "llama": ("AutoModelForCausalLM", "$A", _DECODER),
    "olmoe": ("AutoModelForCausalLM", "$A", {**_DECODER, "num_experts": 8, "num_experts_per_tok": 2}),
    "roberta": ("AutoModelForMaskedLM", "<s> $A </s>", {**_WIDTH, "max_position_embeddings": 512}),
    "t5": ("AutoModelForSeq2SeqLM", "$A </s>", {
        "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2
    }),
    "vit": ("AutoModel", None, {**_WIDTH, "image_size": 8, "patch_size": 2}),
    "whisper": ("AutoModelForSpeechSeq2Seq", "$A </s>", {
        **_SOUND, **{f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in _SIDES.items()},
        "begin_suppress_tokens": None,
    }),
}  # fmt: skip


def tiny(kind: str, folder: str, texts: Iterable[str] = ()) -> str:
    """Write a model of a type in TINY, with a tokenizer of these texts, into a folder; return the folder."""
    auto, form, sizes = TINY[kind]
    ids = IDS
    if form is not None:
        tokenizer = _tokenizer(texts, form)
        tokenizer.save_pretrained(folder)
        ids = {**IDS, "vocab_size": len(tokenizer)}
    if kind in ("t5", "whisper"):
        ids = {**ids, "decoder_start_token_id": 0}
    model = getattr(transformers, auto).from_config(AutoConfig.for_model(kind, **sizes, **ids))
    model.save_pretrained(folder)
    if kind == "vit":
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    if kind == "whisper":
        transformers.WhisperFeatureExtractor(feature_size=32, chunk_length=1).save_pretrained(folder)
    return folder


def _tokenizer(texts: Iterable[str], form: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokens = list(SPECIAL.values())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(form, special_tokens=[("<s>", 2), ("</s>", 1)])
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT, **names)
