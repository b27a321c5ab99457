"""The version of hf_lora, where everything below the top may read it."""

__version__ = "0.1.0"
