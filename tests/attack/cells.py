"""The attack suite's whole table."""

from __future__ import annotations

from attack.harmless import HARMLESS
from attack.reaching_out import FAMILY, FILES, NAMESPACES, NETWORK, PROCESSES
from attack.wearing_down import RESOURCES, SURFACE

ALL = [*FILES, *NAMESPACES, *PROCESSES, *SURFACE, *NETWORK, *RESOURCES, *HARMLESS]
#: All that a copy of a session is attacked with.
COPIES = [*ALL, *FAMILY]
