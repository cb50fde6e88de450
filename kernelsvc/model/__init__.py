"""Pure values and decisions: no clock, task, socket or file below this name."""
