"""The settings that the server gives to its kernel host."""

from __future__ import annotations

from kernelsvc.host.protocol import ForkServerSettings
from kernelsvc.service.host_settings import host_settings
from kernelsvc.settings import Settings, Template


def test_a_template_turns_hints_off_and_a_session_on_again() -> None:
    settings = Settings(templates={"quiet": Template(hints=False), "python3": Template()})
    found = host_settings(settings).templates
    assert found["quiet"].environment({"A": "1"}) == {"KERNELSVC_HINTS": "0", "A": "1"}
    assert found["quiet"].environment({"KERNELSVC_HINTS": "1"}) == {"KERNELSVC_HINTS": "1"}
    assert found["python3"].environment({"A": "1"}) == {"A": "1"}
    assert ForkServerSettings().hints
