"""Which modules a config names: from names and from structure. Models are only looked at."""
