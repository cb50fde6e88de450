"""Hostile cells, each with its expected verdict."""
