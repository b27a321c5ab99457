"""The model card beside an adapter: what it is, what it was trained on, how to load it."""
