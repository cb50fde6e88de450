"""Function calling: the same tools for models that are called by a vendor's own API."""
