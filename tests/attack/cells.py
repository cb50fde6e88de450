"""The attack suite's whole table."""

from __future__ import annotations

from attack.escape_attacks import FAMILY, FILES, NAMESPACES, NETWORK, PROCESSES
from attack.harmless_cells import HARMLESS
from attack.kernel_attacks import RESOURCES, SURFACE

ALL = [*FILES, *NAMESPACES, *PROCESSES, *SURFACE, *NETWORK, *RESOURCES, *HARMLESS]
#: All that a copy of a session is attacked with.
COPIES = [*ALL, *FAMILY]
