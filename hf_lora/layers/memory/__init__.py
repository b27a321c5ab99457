"""Switches for the memory of a training step: gated MLPs that keep less, and logits that are never all there.

mlp.py and head.py specialise modules to compute by gated.py and, over
lazy.py's promises of logits, by maths/cross_entropy.py.
"""
