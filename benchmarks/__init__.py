"""The benchmarks behind the README's figures: kernelsvc and its peers in one run. ``python -m benchmarks --help``."""
