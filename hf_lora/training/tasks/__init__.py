"""What `hf-lora train` can do: one table of tasks, and a file for each family of them."""
