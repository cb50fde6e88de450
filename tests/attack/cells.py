"""The attack suite's whole table."""

from __future__ import annotations

from attack.harmless import HARMLESS
from attack.reaching_out import FILES, NAMESPACES, NETWORK, PROCESSES
from attack.wearing_down import RESOURCES, SURFACE

ALL = [*FILES, *NAMESPACES, *PROCESSES, *SURFACE, *NETWORK, *RESOURCES, *HARMLESS]
