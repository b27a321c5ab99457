"""A base layer, specialised in place: its adapters, which of them act, merging, and the memory of a step."""
