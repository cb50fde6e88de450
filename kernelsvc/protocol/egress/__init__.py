"""Formats that the egress proxy reads from hostile code: a DNS question, a TLS ClientHello. Pure."""
