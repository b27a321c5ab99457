"""A training as a record: its settings, its folder, what it measured, and how it is repeated and resumed."""
