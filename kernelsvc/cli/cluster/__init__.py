"""Commands of clusters: a front, its nodes, and several workers on one machine."""
