"""LoRAModel: a model with adapters, and what it does: adding, loading, saving, publishing, merging."""
