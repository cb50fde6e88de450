"""Nodes of a cluster: the ids that name them, their reports, and the decisions of a front. Pure."""
