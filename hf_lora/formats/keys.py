"""The parts of one of PEFT's keys: its prefix, the layer's path, its wrappers, and what of the adapter it names."""

from __future__ import annotations

__all__ = ["PREFIX", "TOKENS", "WRAP", "split_key", "unwrapped"]

PREFIX = "base_model.model."
WRAP = "base_layer"
TOKENS = "token_adapter.trainable_tokens_delta"
_LEAVES = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_B.bias": "lora_bias",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    TOKENS: "tokens",
}


def split_key(key: str) -> tuple[str, str, str]:
    """Return (path, leaf, the adapter's attribute, "saved" or "tokens") of a key, PEFT's prefix aside."""
    path, _, last = key.removeprefix(PREFIX).rpartition(".")
    before, _, word = path.rpartition(".")
    pair = f"{word}.{last}"
    if pair in _LEAVES:
        return before, pair, _LEAVES[pair]
    return path, last, _LEAVES.get(last, "saved")


def unwrapped(path: str) -> tuple[str, int]:
    """Return a module's path without PEFT's wrappers, and how many of them stand at its end."""
    if WRAP not in path:
        return path, 0
    words = path.split(".")
    depth = next((i for i, word in enumerate(reversed(words)) if word != WRAP), len(words))
    return ".".join(word for word in words if word != WRAP), depth
