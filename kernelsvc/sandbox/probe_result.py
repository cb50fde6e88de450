"""The probe's findings about this machine, as values."""

from __future__ import annotations

import msgspec


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of confinement and its verdict.

    Attributes:
        name: as in plans and reports.
        ok: whether it works here.
        why: the error of its trial.
        fix: the command or step that would make it work.
    """

    name: str
    ok: bool
    why: str = ""
    fix: str = ""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """The layers that work on this machine, for this user.

    Attributes:
        root: whether the host process is root and needs no user namespace.
        arch: as in ``platform.machine()``.
        release: of the Linux kernel.
        layers: by name.
        landlock_abi: version of the Landlock ABI, or 0 if there is none.
    """

    root: bool
    arch: str
    release: str
    layers: dict[str, Layer]
    landlock_abi: int = 0

    def works(self, name: str) -> bool:
        """Return whether that layer was tried and worked."""
        layer = self.layers.get(name)
        return layer is not None and layer.ok
