"""Run one cell for a user at a terminal: show its output live, interrupt it on Ctrl-C, answer its ``input()``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import safe
from kernelsvc.client import AsyncSession
from kernelsvc.errors import KernelsvcError
from kernelsvc.model import events as ev

#: Asks the user a question. The flag hides the answer.
Ask = Callable[[str, bool], Awaitable[str]]


def stdin_prompt() -> Ask:
    """Return a function that asks at the terminal, for ``input()`` and ``getpass`` in a cell. Safe to cancel.

    prompt_toolkit reads the terminal from the event loop. A thread in ``input()`` would hang when the cell is
    interrupted.
    """
    # Imported late: most commands never ask.
    from prompt_toolkit import PromptSession

    prompt: PromptSession[str] = PromptSession()

    async def ask(text: str, secret: bool) -> str:
        return await prompt.prompt_async(safe(text), is_password=secret)

    return ask


async def run_cell(
    session: AsyncSession,
    code: str,
    show: Callable[[ev.Event], None],
    terminal: Terminal,
    *,
    ask: Ask | None = None,
    **options: Any,
) -> ev.CellFinished:
    """Run a cell and show it. Ctrl-C interrupts the cell. A second Ctrl-C stops waiting for it.

    Args:
        session: runs the cell.
        code: source text of the cell.
        show: called with each event, such as ``CellPrinter.show``.
        terminal: shows an error of the interrupt.
        ask: answers ``input()``. Without it ``input()`` fails.
        options: other options of ``AsyncSession.stream``.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C twice. The cell is still running.
        KernelsvcError: the server refused the cell.
    """
    stream = session.stream(code, allow_stdin=ask is not None, **options)
    last = ev.CellFinished()
    with interrupt_on_sigint(session, terminal):
        async for event in stream:
            show(event)
            if isinstance(event, ev.InputRequested) and ask is not None:
                await _answer(session, stream.id, event, ask)
            if isinstance(event, ev.CellFinished):
                last = event
    return last


async def _answer(session: AsyncSession, cell: str, event: ev.InputRequested, ask: Ask) -> None:
    try:
        text = await ask(event.prompt, event.password)
    except (KeyboardInterrupt, EOFError):
        # prompt_toolkit reads Ctrl-C as a key, so that no SIGINT arrives.
        await session.interrupt()
        return
    # In the meantime another client may have answered or interrupted the cell.
    with contextlib.suppress(KernelsvcError):
        await session.input(cell, text)


@contextlib.contextmanager
def interrupt_on_sigint(session: AsyncSession, terminal: Terminal) -> Iterator[None]:
    """Interrupt the session's cell on SIGINT instead of this process. The second SIGINT cancels the block.

    Raises:
        KeyboardInterrupt: the second SIGINT arrived.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupts: list[asyncio.Task[None]] = []
    given_up = False

    def on_sigint() -> None:
        nonlocal given_up
        if interrupts:
            given_up = True
            task.cancel()
            return
        interrupts.append(loop.create_task(_interrupt(session, terminal)))

    loop.add_signal_handler(signal.SIGINT, on_sigint)
    try:
        yield
    except asyncio.CancelledError:
        if not given_up:
            raise
        # The cancellation is handled. asyncio.timeout() and TaskGroup rely on the task's count of pending ones.
        task.uncancel()
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for each in interrupts:
            each.cancel()


async def _interrupt(session: AsyncSession, terminal: Terminal) -> None:
    try:
        await session.interrupt()
    except KernelsvcError as error:
        terminal.message(error.message, "yellow")
