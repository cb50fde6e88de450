"""The settings of the egress proxy, from those of the server."""

from __future__ import annotations

from kernelsvc.egress.protocol import EgressSettings
from kernelsvc.settings import Settings


def proxy_settings(settings: Settings, *, persistent: bool = False) -> EgressSettings:
    """Return the settings of a proxy.

    Args:
        settings: the server's settings.
        persistent: see ``EgressSettings``.
    """
    return EgressSettings(
        runtime_dir=str(settings.runtime_path()),
        hosts=settings.egress_hosts,
        ca_file=str(settings.egress_ca or ""),
        secrets=settings.secrets,
        persistent=persistent,
    )
