"""Switches for the memory of a training step: gated MLPs that keep less, and logits that are never all there.

mlp.py specialises MLPs; head.py output layers, whose promises of logits lazy.py keeps.
"""
