"""The formulas of low-rank adaptation: one file each, one table."""
