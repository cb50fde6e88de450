"""Programs that run nodes on the machines of a cluster: one for Ray.

Kubernetes and systemd need no code: they have ``deploy/kubernetes`` and ``systemd``.
"""
