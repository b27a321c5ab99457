"""Small jobs on pictures and sounds, which are made here: colours and shapes, tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
)

from .jobs import Job

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "initializer_range": 0.3,
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


def wav2vec2(folder: Path) -> Path:
    """Save a wav2vec 2.0 of one layer, which hears 16,000 samples a second."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        conv_dim=(16, 16, 16), conv_stride=(5, 4, 4), conv_kernel=(10, 8, 8), num_feat_extract_layers=3,
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
            wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * (0.2 + number / 100))) / rate)
            channels = np.stack([wave] * (1 + number % 2), axis=1)
            soundfile.write(place / f"{number}.{('wav', 'flac', 'ogg')[number % 3]}", channels, rate)
    return folder / "tones"


JOBS = [
    Job("image-classification", vit, colours, ("--epochs", "8", "--learning-rate", "0.01"), ("eval_accuracy", 0.9)),
    Job("audio-classification", wav2vec2, tones, ("--epochs", "8", "--learning-rate", "0.01"), ("eval_accuracy", 0.9)),
]
