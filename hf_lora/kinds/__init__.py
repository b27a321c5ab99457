"""How a base layer is read as an (out, in) matrix: one file a family of layers, one table."""
