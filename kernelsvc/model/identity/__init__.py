"""Callers that an identity provider knows. Pure."""
