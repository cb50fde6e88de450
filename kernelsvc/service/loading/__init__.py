"""Sessions read back from their directories: at the start of a server, in the background, and on request."""
