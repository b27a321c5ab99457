"""What goes to the Hub: commits, the files of a training run, the model card."""
