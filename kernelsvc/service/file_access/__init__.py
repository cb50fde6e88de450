"""Files of sessions: reads, writes and watches. Implements ``FilesApi``."""
