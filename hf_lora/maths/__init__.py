"""Tensors and numbers only: no layers, no configs, no names."""
