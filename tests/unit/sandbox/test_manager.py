"""What the examination of a machine reports beside its layers."""

from __future__ import annotations

import pytest

from kernelsvc.sandbox.manager import machine_warnings


def test_a_machine_without_weak_points_has_no_warning() -> None:
    assert machine_warnings("core", []) == []
    assert machine_warnings("/var/crash/core.%p", []) == []


@pytest.mark.parametrize("pattern", ["|/usr/share/apport/apport -p%p", "@/run/systemd/coredump", "@@/run/coredump"])
def test_a_program_that_gets_the_memory_of_crashed_processes_is_named(pattern: str) -> None:
    (warning,) = machine_warnings(pattern, [])
    assert warning.startswith(f"core_pattern is {pattern.split()[0]}:")


def test_private_files_that_sessions_see_are_named() -> None:
    assert "/usr/local/lib/token can be read" in machine_warnings("core", ["/usr/local/lib/token"])[0]
    assert "/a and 1 more can be read" in machine_warnings("core", ["/a", "/b"])[0]
