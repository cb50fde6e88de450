"""Messages between the server and the egress proxy: JSON datagrams (``linux.seqpacket``) on ``<runtime>/egress.sock``.

The server sends ``open`` with a pidfd of the container's init, a UDP and a TCP socket for look-ups, and a listener for
each port of the rules. The proxy sends reports, and ``ended`` when the init has ended.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kernelsvc.model.network.rules import MAX_PORTS, NetworkRules
from kernelsvc.model.network.secrets import SecretSource

#: Name of the socket in the runtime directory.
SOCKET_NAME = "egress.sock"
#: Most bytes of a session's rules as JSON. A longer datagram than ``seqpacket.DATAGRAM`` would end the connection, and
#: so the network of all sessions. The message to the kernel host has the session's environment beside the rules.
MAX_RULES_BYTES = 96 * 1024
#: Descriptors of ``open``: the init's pidfd, two sockets for look-ups, and the listeners.
FIRST_LISTENER = 3
MAX_FDS = FIRST_LISTENER + MAX_PORTS


class EgressSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the proxy.

    Attributes:
        runtime_dir: directory of its socket.
        hosts: addresses of names that the proxy does not look up.
        ca_file: a file with certificates of authorities that servers may have, besides the system's, or "".
        secrets: where the proxy reads the operator's secrets, by name.
        persistent: keep running without a server, as under systemd.
    """

    runtime_dir: str
    hosts: dict[str, str] = {}
    ca_file: str = ""
    secrets: dict[str, SecretSource] = {}
    persistent: bool = False


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``open``: accept the connections of a container's sessions. Or change the rules of one that is open.

    Attributes:
        container: id of the container.
        rules: its network rules.
        update: whether the container is open. Then no descriptors come with the message.
    """

    container: str
    rules: NetworkRules
    update: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of the proxy about a container.

    Attributes:
        container: id of the container.
        kind: ``denied``, ``connection`` or ``ended``.
        fields: fields of the event, see ``model.events``.
    """

    container: str
    kind: str
    fields: dict[str, Any] = {}
