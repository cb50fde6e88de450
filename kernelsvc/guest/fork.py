"""Forking a live kernel between cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernelsvc.guest.kernel import Runner
    from kernelsvc.guest.wire import Control


def answer(runner: Runner, control: Control) -> None:
    """Answer a CONTROL request."""
    runner.wire.reply(control.number, {"ok": False, "refused": ["not yet"]})
