"""Linux features that Python's standard library lacks, and small building blocks for server and host."""
