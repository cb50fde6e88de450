"""See ``ARCHITECTURE.md``."""
