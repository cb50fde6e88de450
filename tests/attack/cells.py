"""The attack suite's whole table."""

from __future__ import annotations

from attack.escape_attacks import FAMILY, FILES, NAMESPACES, NETWORK, PROCESSES
from attack.harmless_cells import HARMLESS
from attack.kernel_attacks import RESOURCES, SURFACE

ALL = [*FILES, *NAMESPACES, *PROCESSES, *SURFACE, *NETWORK, *RESOURCES, *HARMLESS]
#: All that a copy of a session is attacked with.
COPIES = [*ALL, *FAMILY]
#: Cells after which others may run in the same session: they use up no limit, and the kernel lives.
SHARED_ATTACKS = [
    cell
    for cell in (*FILES, *NAMESPACES, *PROCESSES, *SURFACE, *NETWORK)
    if cell.confined == "blocked" and cell.survives
]
#: Others change their kernel: joblib leaves processes, which count towards the limit, and threads inherit a scheduling
#: policy (sched(7)), which ZeroMQ then may not set.
SHARED_HARMLESS = [
    cell for cell in HARMLESS if cell.name not in ("joblib", "lowering my own limits", "scheduling myself")
]
