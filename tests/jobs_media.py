"""Small jobs on pictures and sounds, which are made here: colours and shapes, tones."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

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


JOBS = [
    Job("image-classification", vit, colours, ("--epochs", "8", "--learning-rate", "0.01"), ("eval_accuracy", 0.9)),
]
