"""The composition root: everything a transport may call, and nothing else."""

from kernelsvc.service.api import NotebookFormat, ServiceApi, Subscription
from kernelsvc.service.core import Service
from kernelsvc.service.hosting import host_settings

__all__ = ["NotebookFormat", "Service", "ServiceApi", "Subscription", "host_settings"]
