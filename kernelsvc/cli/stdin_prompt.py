"""Asking the person at the terminal, for ``input()`` and ``getpass`` in a cell."""

from __future__ import annotations

from kernelsvc.cli.run_cell import Ask
from kernelsvc.cli.terminal_filter import safe


def asker() -> Ask:
    """Asks at the terminal, without a thread that would hang when the cell is interrupted."""
    from prompt_toolkit import PromptSession

    prompt: PromptSession[str] = PromptSession()

    async def ask(text: str, secret: bool) -> str:
        # Only what stands in the prompt's last line belongs before the cursor; prompt_toolkit shows the rest above.
        return await prompt.prompt_async(safe(text), is_password=secret)

    return ask
