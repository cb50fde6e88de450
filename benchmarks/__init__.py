"""Every figure in the README, measured beside the peers in one run. ``python -m benchmarks --help``."""
