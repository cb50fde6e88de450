"""Requests over TLS that the proxy reads: it is the server for the session, and a client for the server."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from pathlib import Path

from kernelsvc.egress.authority import Authority, open_authority, upstream_context
from kernelsvc.egress.byte_channels import PlainChannel, TlsChannel
from kernelsvc.egress.protocol import EgressSettings
from kernelsvc.egress.secret_values import Secret, read_secrets


class Interception:
    """The authority, the secrets, and the contexts of TLS. Each context is made when a connection first needs it.

    Args:
        authority: the authority's key and certificate, as PEM.
        more: certificates of authorities that servers may have, besides the system's, as PEM.
        secrets: the operator's secrets.
    """

    def __init__(self, authority: bytes, more: str, secrets: Mapping[str, Secret]) -> None:
        self._pem = authority
        self._more = more
        self.secrets = secrets

    @functools.cached_property
    def _authority(self) -> Authority:
        return Authority(self._pem)

    @functools.cached_property
    def _upstream(self) -> ssl.SSLContext:
        return upstream_context(self._more)

    async def accept(self, plain: PlainChannel, name: str) -> TlsChannel:
        """Answer a session's handshake in the place of a server. See ``TlsChannel.accept``."""
        return await TlsChannel.accept(plain, self._authority.context(name))

    async def connect(self, plain: PlainChannel, name: str) -> TlsChannel:
        """Make a handshake with a server, and verify its certificate. See ``TlsChannel.connect``."""
        return await TlsChannel.connect(plain, self._upstream, name)


def open_interception(settings: EgressSettings) -> Interception:
    """Read the secrets, and open the authority. The process must not be confined yet.

    Raises:
        OSError: a file of the runtime directory can't be read or written, or ``settings.ca_file`` can't be read.
    """
    more = Path(settings.ca_file).read_text() if settings.ca_file else ""
    return Interception(open_authority(Path(settings.runtime_dir), more), more, read_secrets(settings.secrets))
