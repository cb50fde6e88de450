"""Callers that an identity provider knows, and caches that callers share. Pure."""
