"""Benchmarks: ratios measured in one process, arms interleaved round by round. The library knows nothing of them."""
