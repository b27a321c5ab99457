"""What an adapter's files are called."""

from __future__ import annotations

__all__ = ["CARD_NAME", "CONFIG_NAME", "NOTES_KEY", "PENDING_NAME", "WEIGHTS_NAME", "WEIGHTS_NAMES"]

CARD_NAME = "README.md"
CONFIG_NAME = "adapter_config.json"
PENDING_NAME = f".{CONFIG_NAME}.pending"
WEIGHTS_NAME = "adapter_model.safetensors"
WEIGHTS_NAMES = (WEIGHTS_NAME, "adapter_model.bin")
NOTES_KEY = "hf_lora"  # of the safetensors metadata: a JSON object
