"""Servers in sessions, reached from outside."""
