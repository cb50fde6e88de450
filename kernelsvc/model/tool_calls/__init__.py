"""Calls of code in a session to functions of clients: offers, and the calls of one session. Pure."""
