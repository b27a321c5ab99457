"""Small jobs on pictures and sounds, which are made here: colours and shapes, tones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    YolosConfig,
    YolosImageProcessor,
    YolosModel,
)

from .jobs import Job, write_csv, write_jsonl

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "initializer_range": 0.1,
}


def vit(folder: Path) -> Path:
    """Save a ViT of one layer for pictures of 16 pixels."""
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def colours(folder: Path) -> Path:
    """Write a folder of red and one of blue pictures, of several sizes, modes and formats."""
    for label, red, blue in (("red", 255, 0), ("blue", 0, 255)):
        place = folder / "photos" / label
        place.mkdir(parents=True)
        for number in range(16):
            made = Image.new("RGB", (10 + 3 * number, 30), (red, number * 8, blue))
            if number % 4 == 0:
                made.convert("RGBA").save(place / f"{number}.png")
            elif number % 4 == 1:
                made.convert("CMYK").save(place / f"{number}.jpg")
            elif number % 4 == 2:
                made.convert("P").save(place / f"{number}.gif")
            else:
                made.save(place / f"{number}.webp", lossless=True)
    return folder / "photos"


def yolos(folder: Path) -> Path:
    """Save a YOLOS of one layer that looks for two objects."""
    torch.manual_seed(0)
    config = YolosConfig(image_size=[32, 32], patch_size=8, num_detection_tokens=2, **SIZES)
    YolosModel(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def squares(folder: Path) -> Path:
    """Write black pictures with a red or a blue square, and their boxes beside them."""
    (folder / "squares").mkdir(parents=True)
    rows = []
    for number in range(32):
        label, colour = (("red", (255, 0, 0)), ("blue", (0, 0, 255)))[number % 2]
        left, top = 24 + number % 4, 16 + number % 3
        made = Image.new("RGB", (48, 32))
        made.paste(colour, (left, top, left + 20, top + 14))
        made.save(folder / "squares" / f"{number}.png")
        objects = {"bbox": [[left, top, 20, 14]], "categories": [label]}
        rows.append({"file_name": f"{number}.png", "objects": objects})
    write_jsonl(folder / "squares" / "metadata.jsonl", rows)
    return folder / "squares"


def wav2vec2(folder: Path, stride: tuple[int, ...] = (5, 4, 4)) -> Path:
    """Save a wav2vec 2.0 of one layer, which hears 16,000 samples a second."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        conv_dim=(16, 16, 16), conv_stride=stride, conv_kernel=tuple(2 * each for each in stride), num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, classifier_proj_size=16, mask_time_prob=0.0, **SIZES,
    )  # fmt: skip
    Wav2Vec2ForPreTraining(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def tones(folder: Path) -> Path:
    """Write a folder of low and one of high tones, of several rates, formats, lengths and numbers of channels."""
    for label, hertz in (("low", 200), ("high", 1500)):
        place = folder / "tones" / label
        place.mkdir(parents=True)
        for number in range(16):
            rate = (8000, 16000, 22050, 44100)[number % 4]
            wave = 0.5 * _tone(hertz, rate, 0.2 + number / 100)
            channels = np.stack([wave] * (1 + number % 2), axis=1)
            soundfile.write(place / f"{number}.{('wav', 'flac', 'ogg')[number % 3]}", channels, rate)
    return folder / "tones"


def speller(folder: Path) -> Path:
    """Save the wav2vec 2.0 with a tokenizer of letters."""
    wav2vec2(folder, (8, 8, 8))
    letters = folder / "vocab.json"
    letters.write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "L": 5, "H": 6}))
    tokenizer = Wav2Vec2CTCTokenizer(str(letters))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def spelt(folder: Path) -> Path:
    """Write low and high tones, and a CSV of their letters."""
    rows = []
    for number in range(32):
        letter, hertz = (("l", 200), ("h", 1500))[number % 2]
        soundfile.write(folder / f"{number}.wav", 0.5 * _tone(hertz, 16000, 0.2 + number / 200), 16000)
        rows.append([f"{number}.wav", letter])
    return write_csv(folder / "spelt.csv", ["file", "sentence"], rows)


def _tone(hertz: int, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def whisper(folder: Path) -> Path:
    """Save a Whisper of one layer, of three languages, whose words are bytes."""
    torch.manual_seed(0)
    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    marks += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {letter: number for number, letter in enumerate([*sorted(ByteLevel.alphabet()), *marks])}
    tokenizer = WhisperTokenizer(vocabulary, [], pad_token=marks[0])  # as Whisper's; Transformers 5.0 goes by it
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    numbers = {mark: vocabulary[mark] for mark in marks}
    special = {"pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 257}
    config = WhisperConfig(
        vocab_size=len(vocabulary), num_mel_bins=32, max_source_positions=50, max_target_positions=16, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, init_std=0.3, begin_suppress_tokens=None, **special,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=True, lang_to_id={mark: numbers[mark] for mark in marks[2:5]},
        task_to_id={mark.strip("<|>"): numbers[mark] for mark in marks[5:7]}, no_timestamps_token_id=numbers[marks[-1]],
        **special,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=32, chunk_length=1), tokenizer).save_pretrained(folder)
    return folder


JOBS = [
    Job("image-classification", vit, colours, ("--epochs", "8", "--learning-rate", "0.01"), ("eval_accuracy", 0.9)),
    Job("audio-classification", wav2vec2, tones, ("--epochs", "8", "--learning-rate", "0.01"), ("eval_accuracy", 0.9)),
    Job(
        "object-detection", yolos, squares, ("--epochs", "10", "--batch-size", "4", "--learning-rate", "0.02"),
        ("mean_average_precision", 0.1),
    ),
    # Letters from scratch take minutes: the loss of both is above 5 at first.
    Job(
        "speech-recognition", speller, spelt,
        ("--epochs", "8", "--learning-rate", "0.01", "--metric", "loss", "--metric", "wer", "--metric", "cer"),
        ("-loss", 1.5),
    ),
    Job(
        "speech-recognition", whisper, spelt,
        ("--epochs", "8", "--learning-rate", "0.01", "--language", "de"), ("-loss", 3.0),
    ),
]  # fmt: skip
