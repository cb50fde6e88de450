"""Traces: the context that a request carries, and the spans that follow from a journal. Pure."""
