"""``tools``: code in a session calls functions of its clients."""
