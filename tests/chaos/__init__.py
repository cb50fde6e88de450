"""Faults, caused for real: what dies, drops, fills or tears, and what must stand after it."""
