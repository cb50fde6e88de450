"""Commands on sessions: list, show, explain, act, branch, export and verify."""
