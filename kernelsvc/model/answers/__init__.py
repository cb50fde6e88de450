"""Answers of a model that runs code: values, and the decisions about what follows."""
