"""The server's side of network rules."""
