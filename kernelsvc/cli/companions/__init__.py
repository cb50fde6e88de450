"""Processes of their own beside a server: the bridge to MCP servers, and the export of spans."""
