"""People's rows, as they come: read, understood, checked and split."""
