"""Directories that sessions have besides their own."""
