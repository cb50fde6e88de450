"""The composition root: everything a transport may call, and nothing else."""

from kernelsvc.service.api import NotebookFormat, ServiceApi, Subscription
from kernelsvc.service.service import Service

__all__ = ["NotebookFormat", "Service", "ServiceApi", "Subscription"]
