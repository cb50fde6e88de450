"""The export of spans, in a process of its own: it follows the journals on disk and sends what is new to a receiver."""
