"""Backups of a data directory: written while its server runs, and restored into a new one."""
