"""What goes to the Hub and what must not: private names and tokens, commits, the model card."""
