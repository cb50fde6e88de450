"""``kernelsvc traces``: send the spans of a data directory's sessions to a receiver of OTLP."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from kernelsvc import __version__, logs
from kernelsvc import settings as conf
from kernelsvc.cli.companions.companion_process import CompanionProcess, locked, secret_variables
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, NotSupported
from kernelsvc.linux.line_file import walk
from kernelsvc.model.tracing.spans import Span, SpanFold
from kernelsvc.model.tracing.target import SpanTarget, find_endpoint, target_of
from kernelsvc.service.directories import unlock_data_directory
from kernelsvc.telemetry.tracing.status import FILE

LOCK, CURSOR = "traces.lock", "traces.sqlite"


def prepare(settings: conf.Settings, env: Mapping[str, str]) -> CompanionProcess | None:
    """Return the process that exports the spans of a server. None if the settings name no receiver.

    Raises:
        BadRequest, NotSupported: the settings are not valid, or a package is missing.
    """
    if not find_endpoint(settings.telemetry, env):
        return None
    read_target(settings, env)
    _exporter()
    chosen = {f"{conf.ENV_PREFIX}DATA_DIR": str(settings.data_path())}
    for row in conf.TABLE:
        if row.name.startswith("telemetry."):
            chosen[row.env] = str(getattr(settings.telemetry, row.name.partition(".")[2]))
    words = ["traces", *(["--config", settings.config_file] if settings.config_file else [])]
    return CompanionProcess(words, settings.data_path() / LOCK, chosen, without=secret_variables(settings))


def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Follow the journals until a signal ends the process, or send the spans of some sessions."""
    settings = conf.load(vars(args), os.environ)
    target = read_target(settings, os.environ)
    if target is None:
        raise BadRequest(
            "No receiver of spans is named. Give one as --telemetry-endpoint, such as http://127.0.0.1:4318."
        )
    exporter = _exporter()
    unlock_data_directory(settings)
    if args.session:
        return asyncio.run(_send(exporter, settings, target, args.session, terminal))
    logs.configure(logging.WARNING, operator_level=logging.WARNING, form=settings.log_format)
    with locked(settings.data_path() / LOCK):
        exporter.lower_priority()
        asyncio.run(_follow(exporter, settings, target))
    return 0


def _exporter() -> ModuleType:
    """Import the exporter, which no other command needs.

    Raises:
        NotSupported: the package with OTLP's messages is missing.
    """
    try:
        return importlib.import_module("kernelsvc.telemetry.tracing.exporter")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(("opentelemetry", "google")):
            raise
        raise NotSupported(
            "Spans need a further package. Install it with pip install 'kernelsvc[telemetry]', or leave out "
            "telemetry.endpoint."
        ) from None


def read_target(settings: conf.Settings, env: Mapping[str, str]) -> SpanTarget | None:
    """Return the receiver that the settings and OpenTelemetry's variables name, or None.

    Raises:
        BadRequest: a value is not valid, or the file of headers can't be read.
    """
    path = settings.telemetry.headers_file
    try:
        headers = Path(path).read_text("utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadRequest(f"Can't read {path} (telemetry.headers_file): {why}.") from None
    host = socket.gethostname()
    instance = f"{host}:{settings.data_path()}"
    return target_of(settings.telemetry, env, headers, instance=instance, version=__version__, host=host)


async def _follow(exporter: ModuleType, settings: conf.Settings, target: SpanTarget) -> None:
    from kernelsvc.telemetry.tracing.cursor import Cursor
    from kernelsvc.telemetry.tracing.follower import JournalFollower

    data = settings.data_path()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        cursor = Cursor(data / CURSOR)
    except (OSError, sqlite3.Error) as error:
        raise BadRequest(f"Can't use {data / CURSOR}: {error}. Remove the file to begin with new entries.") from None
    telemetry = settings.telemetry
    follower = JournalFollower(
        data / "sessions", cursor.positions(), content=telemetry.content, sample=telemetry.sample
    )
    sender = exporter.SpanSender(target)
    try:
        await exporter.Exporter(follower, cursor, sender, data / FILE).run(stopping)
    finally:
        sender.close()
        cursor.close()


async def _send(
    exporter: ModuleType, settings: conf.Settings, target: SpanTarget, sessions: list[str], terminal: Terminal
) -> int:
    sender = exporter.SpanSender(target)
    try:
        for session in sessions:
            count = 0
            for spans in _batches(_spans_of(settings, session)):
                fate = await sender.send(spans)
                if fate.kind != "accepted":
                    raise KernelsvcError(f"The spans of {session} were not taken: {fate.message}. Send them again.")
                count += len(spans) - fate.rejected
            terminal.message(f"{session}: {count} spans sent")
    finally:
        sender.close()
    return 0


def _batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    from kernelsvc.telemetry.tracing.follower import Batch

    batch = Batch()
    for span in spans:
        batch.add(span)
        if batch.is_full():
            yield batch.spans
            batch = Batch()
    if batch.spans:
        yield batch.spans


def _spans_of(settings: conf.Settings, session: str) -> Iterator[Span]:
    data = settings.data_path()
    # Each worker of ``serve --workers`` has sessions of its own.
    places = [data, *sorted((data / "workers").glob("*"))]
    found = [path for each in places if (path := each / "sessions" / session / "journal.jsonl").is_file()]
    if "/" in session or not found:
        raise NotFound(f"There is no session {session!r} in {data}. 'kernelsvc sessions' lists them.")
    fold = SpanFold(session, content=settings.telemetry.content)
    with found[0].open("rb") as file:
        for line in walk(file.fileno(), 0, os.fstat(file.fileno()).st_size):
            yield from fold.feed_line(line)
