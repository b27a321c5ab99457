"""LoRAConfig and its rules."""
