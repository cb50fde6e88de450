"""One suite of scenarios for the clients of every language. The scenarios are data: ``scenarios.json``."""
