"""What the probe found out about this machine, as values."""

from __future__ import annotations

import msgspec


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of confinement, tried once.

    Attributes:
        name: as in plans and reports.
        ok: it works here.
        why: what happened when it was tried, if it doesn't.
        fix: the command or step that would change that.
    """

    name: str
    ok: bool
    why: str = ""
    fix: str = ""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What works on this machine, for this user.

    Attributes:
        root: the host process has root's rights, so no user namespace is needed.
        arch: as ``platform.machine()`` names it.
        release: of the Linux kernel.
        layers: by name.
        landlock_abi: 0 where there is none.
    """

    root: bool
    arch: str
    release: str
    layers: dict[str, Layer]
    landlock_abi: int = 0

    def works(self, name: str) -> bool:
        """Whether that layer was tried and worked."""
        layer = self.layers.get(name)
        return layer is not None and layer.ok
