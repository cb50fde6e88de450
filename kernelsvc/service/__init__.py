"""The composition root: everything a transport may call, and nothing else."""

from kernelsvc.service.api import NotebookFormat, ServiceApi, Subscription

__all__ = ["NotebookFormat", "ServiceApi", "Subscription"]
