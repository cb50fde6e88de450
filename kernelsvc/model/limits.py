"""Limits of a session, and its usage. Sizes are in bytes, times in seconds. ``None`` means no limit."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kernelsvc.errors import BadRequest, LimitTooHigh
from kernelsvc.model.network.rules import NetworkRules

MiB = 1024 * 1024

PositiveInt = Annotated[int, msgspec.Meta(gt=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
#: Nothing, the host's network, or only the destinations of rules.
Network = Literal["none", "host"] | NetworkRules
Enforcement = Literal["hard", "per process", "supervised", "none"]


def shown_bytes(size: float) -> str:
    """Return a size for people.

    >>> shown_bytes(3 * MiB), shown_bytes(2000), shown_bytes(7)
    ('3 MiB', '2 KiB', '7 bytes')
    """
    if size >= MiB:
        return f"{size / MiB:.0f} MiB"
    return f"{size / 1024:.0f} KiB" if size >= 1024 else f"{size:.0f} bytes"


#: Smallest values with which a session can start.
FLOORS: dict[str, int] = {"memory_bytes": 64 * MiB, "open_files": 64}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one session. A request may lower the server's limits, never raise them."""

    memory_bytes: int | None = 2048 * MiB
    cpu_cores: float | None = None
    cell_seconds: float | None = 600.0
    cpu_seconds: float | None = None
    processes: int | None = 128
    open_files: int | None = 1024
    disk_bytes: int | None = 2048 * MiB
    files: int | None = 100_000
    output_bytes: int | None = 1 * MiB
    idle_seconds: float | None = 3600.0
    lifetime_seconds: float | None = 24 * 3600.0
    network: Network = "none"

    def lowered(self, wanted: LimitsRequest, *, any_secret: bool = False) -> Limits:
        """Return a copy of these limits with the requested values.

        Args:
            wanted: The requested values.
            any_secret: See ``lowered_network``.

        Raises:
            BadRequest: A wanted limit is too low for a session to start, or the rules are too many with the server's.
            LimitTooHigh: A wanted limit is above this one, or asks for a network that this one denies.
        """
        changes: dict[str, object] = {}
        for name in wanted.__struct_fields__:
            value = getattr(wanted, name)
            if value is None:
                continue
            floor = FLOORS.get(name)
            if floor is not None and value < floor:
                raise BadRequest(
                    f"{name} = {value} is too little to start a session. Ask for {floor} or more.",
                    limit=name,
                    wanted=value,
                    least=floor,
                )
            if name == "network":
                changes[name] = lowered_network(self.network, value, any_secret=any_secret)
                continue
            ceiling = getattr(self, name)
            if ceiling is not None and value > ceiling:
                raise LimitTooHigh(
                    f"{name} = {value} is above this server's {ceiling}. Ask for at most that.",
                    limit=name,
                    wanted=value,
                    allowed=ceiling,
                )
            changes[name] = value
        return msgspec.structs.replace(self, **changes)


def lowered_network(ceiling: Network, wanted: Network, *, any_secret: bool = False) -> Network:
    """Return the network of a session that asks for ``wanted`` where at most ``ceiling`` is allowed.

    Args:
        ceiling: The server's network.
        wanted: The requested network.
        any_secret: Whether the caller may use each secret of the operator where the server's network is "host". Such a
            network lists no secret that sessions may use, and an access to all destinations is no access to all keys.

    Raises:
        LimitTooHigh: It asks for more. The message names the rule.
        BadRequest: With the server's denied hosts there are too many rules.
    """
    if ceiling == "host":
        if isinstance(wanted, NetworkRules) and not any_secret:
            _refuse_secrets(wanted)
        return wanted
    if wanted == "none":
        return wanted
    if ceiling == "none":
        allowed, refused = "none", wanted if isinstance(wanted, str) else wanted.summary()
    elif isinstance(wanted, str):
        allowed, refused = ceiling.summary(), wanted
    else:
        uncovered = ceiling.uncovered(wanted)
        if uncovered is None:
            _check_quotas(ceiling, wanted)
            try:
                return ceiling.restricted_to(wanted)
            except ValueError as error:
                raise BadRequest(f"With this server's own, {error}.", limit="network") from None
        allowed, refused = ceiling.summary(), uncovered
    raise LimitTooHigh(
        f"network = {refused} is more than this server allows: {allowed}. Ask for at most that.",
        limit="network",
        wanted=refused,
        allowed=allowed,
    )


def _refuse_secrets(wanted: NetworkRules) -> None:
    """Refuse rules with secrets.

    Raises:
        LimitTooHigh: A rule has some.
    """
    for rule in wanted.parsed():
        if rule.secrets:
            raise LimitTooHigh(
                f"network = {rule.text} uses secrets of this server, and this token may not. Use one with the scope "
                "admin, or let the operator list the rule in the server's limits.network instead of host.",
                limit="network",
                wanted=rule.text,
                allowed="host, without secrets",
            )


def _check_quotas(ceiling: NetworkRules, wanted: NetworkRules) -> None:
    """Refuse quotas above the server's. A request without them gets the server's.

    Raises:
        LimitTooHigh: One is higher.
    """
    unset = NetworkRules(allow=())
    for name in ("connections", "bytes"):
        value, most = getattr(wanted, name), getattr(ceiling, name)
        if value != getattr(unset, name) and most is not None and value > most:
            raise LimitTooHigh(
                f"network.{name} = {value} is above this server's {most}. Ask for at most that.",
                limit=f"network.{name}",
                wanted=value,
                allowed=most,
            )


class LimitsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that a client asks for. Missing ones are the server's."""

    memory_bytes: PositiveInt | None = None
    cpu_cores: PositiveFloat | None = None
    cell_seconds: PositiveFloat | None = None
    cpu_seconds: PositiveFloat | None = None
    processes: PositiveInt | None = None
    open_files: PositiveInt | None = None
    disk_bytes: PositiveInt | None = None
    files: PositiveInt | None = None
    output_bytes: PositiveInt | None = None
    idle_seconds: PositiveFloat | None = None
    lifetime_seconds: PositiveFloat | None = None
    network: Network | None = None


class CellUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that one cell used."""

    wall_ms: float = 0.0
    cpu_ms: float | None = None
    peak_rss_bytes: int | None = None
    output_bytes: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that a session uses now. ``None`` if not measured yet."""

    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    files: int | None = None
    output_bytes: int = 0
