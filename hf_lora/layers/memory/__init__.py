"""Switches for the memory of a training step: gated MLPs that keep less, and logits that are never all there.

switches.py is what a model offers; mlp.py and head.py specialise modules (special.py) to compute by gated.py and, over
lazy.py's promises of logits, by chunked.py.
"""
