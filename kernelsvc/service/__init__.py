"""The composition root: everything a transport may call, and nothing else."""

from kernelsvc.service.api import NotebookFormat, ServiceApi, Subscription
from kernelsvc.service.host_settings import host_settings
from kernelsvc.service.service import Service

__all__ = ["NotebookFormat", "Service", "ServiceApi", "Subscription", "host_settings"]
