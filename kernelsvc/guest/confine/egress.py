"""Listeners through which a session's connections reach the proxy: bound in the session's network namespace.

``local 0.0.0.0/0`` makes every address one of this host, so a connection to any address arrives at a listener that is
bound to the wildcard address (AnyIP: ip-route(8), type ``local``). A socket stays in the network namespace in which it
was made (network_namespaces(7)), so the proxy accepts on it from outside. Nothing is forwarded, and no program in the
session needs to know of a proxy. It needs CAP_NET_ADMIN in the namespace only.
"""

from __future__ import annotations

import os
import socket
import struct

#: The session's own address besides the loopback's. glibc asks for IPv4 addresses only if the host has one that is not
#: 127.0.0.1 (getaddrinfo(3), AI_ADDRCONFIG). RFC 2544 reserves the network for tests, so it is no place of anyone.
OWN_ADDRESS = "198.18.0.2"
DNS_PORT = 53
_BACKLOG = 256

# rtnetlink(7): message types, flags and attributes.
_NEWADDR, _NEWROUTE = 20, 24
_REQUEST, _ACK, _CREATE, _EXCL = 0x1, 0x4, 0x400, 0x200
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_PREFSRC = 4, 7
_TABLE_LOCAL, _PROTO_BOOT, _SCOPE_HOST, _TYPE_LOCAL = 255, 3, 254, 2
#: In a new network namespace, lo is the only interface and has the index 1.
_LO = 1


def open_listeners(ports: list[int]) -> list[int]:
    """Make every address local, and bind the listeners. Return their descriptors.

    Args:
        ports: TCP ports of the session's rules.

    Returns:
        A UDP socket and a TCP listener for name look-ups, and then a listener for each port, in order.

    Raises:
        OSError: Linux refused.
    """
    family = _family()
    _route_everything_here(family)
    made: list[socket.socket] = []
    try:
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made[0].bind(("0.0.0.0", DNS_PORT))
        made.extend(_listen(family, port) for port in (DNS_PORT, *ports))
    except OSError:
        for one in made:
            one.close()
        raise
    return [one.detach() for one in made]


def _listen(family: socket.AddressFamily, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without SO_REUSEPORT: with it, another process of the same user could take a share of the connections.
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _family() -> socket.AddressFamily:
    # With ipv6.disable=1 there is no such family (Documentation/networking/ipv6).
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return socket.AF_INET
    return socket.AF_INET6


def _route_everything_here(family: socket.AddressFamily) -> None:
    own = socket.inet_aton(OWN_ADDRESS)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        head = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, _LO)
        _request(link, _NEWADDR, head + _attribute(_IFA_ADDRESS, own) + _attribute(_IFA_LOCAL, own))
        # The preferred source keeps a connection from coming from the address that it goes to.
        _request(link, _NEWROUTE, _local_route(socket.AF_INET, _SCOPE_HOST) + _attribute(_RTA_PREFSRC, own))
        if family == socket.AF_INET6:
            _request(link, _NEWROUTE, _local_route(socket.AF_INET6, 0))


def _local_route(family: int, scope: int) -> bytes:
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _TABLE_LOCAL, _PROTO_BOOT, scope, _TYPE_LOCAL, 0)
    return head + _attribute(_RTA_OIF, struct.pack("=I", _LO))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _request(link: socket.socket, kind: int, body: bytes) -> None:
    flags = _REQUEST | _ACK | _CREATE | _EXCL
    link.sendto(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body, (0, 0))
    # netlink(7): the answer is an NLMSG_ERROR message, with 0 for success.
    number = -struct.unpack_from("=i", link.recv(65536), 16)[0]
    if number:
        raise OSError(number, f"rtnetlink message {kind}: {os.strerror(number)}")
