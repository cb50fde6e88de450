"""How a kernel comes to exist, speaks and ends."""
