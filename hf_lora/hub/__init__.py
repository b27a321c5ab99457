"""What others get to see: what is private, commits, the model card."""
