"""Finding what to adapt from a model's structure: no table of models, only of words and shapes."""

from .presets import preset_targets

__all__ = ["preset_targets"]
