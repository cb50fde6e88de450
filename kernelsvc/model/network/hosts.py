"""Names, networks and ports in the rules of a session's network.

A host is an exact name, ``*.name`` for any name with one or more labels before it, ``*`` for any public name, or a
network in CIDR notation. Names are ASCII: an internationalized name is written as A-labels (RFC 5890), because two
spellings of one name would be two rules.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Ports of a rule that names none: HTTP and HTTPS.
HTTP_PORT, HTTPS_PORT = DEFAULT_PORTS = (80, 443)
#: The port of name look-ups. A session's look-ups are answered by the proxy, so no rule may have it.
DNS_PORT = 53
#: Longest name in characters, without the final dot (RFC 1035, section 2.3.4).
MAX_NAME = 253

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# The URL standard treats a host whose last label is a number as an IPv4 address: 127.1, 2130706433, 0x7f000001.
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
#: Second labels below which a country's registry sells names. A wildcard over one would cover unrelated owners.
_REGISTRY_LABELS = frozenset({"ac", "co", "com", "edu", "go", "gob", "gov", "gv", "mil", "ne", "net", "or", "org"})
_EXAMPLES = "Write a name (pypi.org), *.name (*.example.com) or a network (203.0.113.0/24), with :PORT if needed"

#: RFC 6052: the well-known prefix for IPv4 addresses in IPv6.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Networks that are not public, although ``is_global`` of some Python versions says so (CVE-2024-4032): local NAT64
#: (RFC 8215), site-local (RFC 3879), SRv6 SIDs (RFC 9602), dummy (RFC 9780), documentation (RFC 9637), 6to4 relays
#: (RFC 7526), IPv4-compatible and IPv4-translated (RFC 4291, section 2.5.5.1; RFC 2765), protocols of the next router
#: (RFC 6890), and the address of Azure's agent for the machine, which has its keys.
_NOT_PUBLIC: tuple[IpNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b:1::/48", "fec0::/10", "5f00::/16", "100:0:0:1::/64", "3fff::/20", "192.88.99.0/24",
        "::/96", "::ffff:0:0:0/96", "192.0.0.0/24", "2001::/23", "168.63.129.16/32",
    )
)  # fmt: skip


class Host(NamedTuple):
    """The host of a rule.

    Attributes:
        text: The host as it is compared: lower case, without a port.
        network: The network, or None if the rule has a name.
    """

    text: str
    network: IpNetwork | None = None

    def matches(self, name: str) -> bool:
        """Whether a name (from ``clean_name``) is one of this rule."""
        if self.network is not None:
            return False
        if self.text == "*":
            return True
        return name.endswith(self.text[1:]) if self.text.startswith("*.") else name == self.text

    def contains(self, address: IpAddress) -> bool:
        """Whether an address is in this rule's network."""
        return self.network is not None and address.version == self.network.version and address in self.network

    def covers(self, other: Host) -> bool:
        """Whether each name or address of ``other`` is one of this rule."""
        if self.network is not None or other.network is not None:
            return _within(other.network, self.network)
        if self.text == "*" or self.text == other.text:
            return True
        return self.text.startswith("*.") and other.text.removeprefix("*").endswith(self.text[1:])


def _within(inner: IpNetwork | None, outer: IpNetwork | None) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def clean_name(text: str) -> str:
    """Return a host name as rules compare it: A-labels in lower case, without a final dot.

    Raises:
        ValueError: It is not a name of a host. No spelling of an address is one.
    """
    name = text[:-1] if text.endswith(".") else text
    if not name.isascii():
        raise ValueError("the name is not ASCII: write A-labels (xn--...)")
    name = name.lower()
    labels = name.split(".")
    if not name or len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("it is not the name of a host")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("it is an address and not a name")
    return name


def parse_host(text: str) -> tuple[Host, int | None]:
    """Parse the host of a rule, with its port if it has one.

    Raises:
        ValueError: It is none. The message says how to write one.
    """
    host, port = _split_port(text)
    if host == "*":
        return Host("*"), port
    try:
        network = ipaddress.ip_network(host)
    except ValueError:
        return Host(_checked_name(host, text)), port
    return Host(str(network), network), port


def _split_port(text: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?|([^:\[\]]*):(\d{1,5})", text)
    if found is None:
        return text, None
    host, port = found[1] if found[3] is None else found[3], found[2] or found[4]
    return host, None if port is None else check_port(int(port), text)


def check_port(port: int, rule: str) -> int:
    """Return a port that a rule may have.

    Raises:
        ValueError: It is not a port, or that of look-ups.
    """
    if not 0 < port < 65536:
        raise ValueError(f"rule {rule!r}: {port} is not a port. Ports are 1 to 65535")
    if port == DNS_PORT:
        raise ValueError(f"rule {rule!r}: port 53 is not for rules. Names are looked up outside of the session")
    return port


def _checked_name(host: str, rule: str) -> str:
    wildcard = host.startswith("*.")
    try:
        if host.endswith("."):
            raise ValueError("leave out the final dot")
        name = clean_name(host.removeprefix("*."))
    except ValueError as error:
        raise ValueError(f"rule {rule[:300]!r}: {error}. {_EXAMPLES}") from None
    if wildcard and _is_registry(name):
        raise ValueError(f"rule {rule!r}: names below {name} have many owners. Write one of them, as *.example.{name}")
    return f"*.{name}" if wildcard else name


def _is_registry(name: str) -> bool:
    labels = name.split(".")
    return len(labels) == 1 or (len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _REGISTRY_LABELS)


def is_public(address: IpAddress) -> bool:
    """Whether an address is one of the Internet, and so is the IPv4 address that it stands for, if it does.

    Without this check a name could point to the machine's own services, or to a cloud's metadata (169.254.169.254).
    """
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    listed = any(address.version == network.version and address in network for network in _NOT_PUBLIC)
    return address.is_global and not (address.is_multicast or listed)


def _embedded(address: IpAddress) -> IpAddress | None:
    """Return the IPv4 address in an IPv6 address that a translator or a tunnel would send packets to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def is_public_network(network: IpNetwork) -> bool:
    """Whether the first and the last address of a network are public, and it overlaps none that is not."""
    overlaps = any(other.version == network.version and network.overlaps(other) for other in _NOT_PUBLIC)
    return not overlaps and network.is_global and is_public(network[0]) and is_public(network[-1])


def check_fixed_hosts(hosts: Mapping[str, str]) -> None:
    """Check names and their addresses, as in hosts(5).

    Raises:
        ValueError: A name or an address is not valid.
    """
    for name, address in hosts.items():
        try:
            clean_name(name)
            ipaddress.ip_address(address)
        except ValueError as error:
            raise ValueError(f"{name} = {address!r}: {error}. Write a name and an address") from None
