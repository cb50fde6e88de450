"""Rules of a session's network: how they are written, whether one set covers another, and their decisions."""
