"""Comparisons of event loops: `python -m benchmarks --help` lists what there is."""
