"""The settings of the kernel host, derived from those of the server and from its environments."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from kernelsvc.errors import KernelsvcError
from kernelsvc.host.protocol import ForkServerSettings, HostSettings
from kernelsvc.settings import Settings, Template
from kernelsvc.store.environments import EnvironmentStore

log = logging.getLogger(__name__)

#: Seconds between two looks for new environments.
ENVIRONMENT_SECONDS = 1.0


def host_settings(settings: Settings) -> HostSettings:
    """Return the settings of the kernel host."""
    return HostSettings(
        runtime_dir=str(settings.runtime_path()),
        templates=fork_server_settings(settings),
        sandbox=settings.sandbox,
        hidden=[str(settings.data_path())],
        hidden_files=settings.private_files(),
        adoption_seconds=settings.adoption_seconds,
        wheelhouse=os.path.realpath(settings.wheelhouse) if settings.wheelhouse else "",
        mounts=sorted({mount.path for mount in settings.mounts.values()}),
        limits=settings.limits,
    )


def fork_server_settings(settings: Settings) -> dict[str, ForkServerSettings]:
    """Return the templates of the settings and the environments of the data directory. The settings' names win."""
    records = EnvironmentStore(settings.data_path()).read_all()
    made = {name: Template(python=one.python, preload=one.preload) for name, one in records.items()}
    return {
        name: ForkServerSettings(
            python=one.python,
            preload=one.preload,
            allow_modules=one.allow_modules,
            deny_modules=one.deny_modules,
            hints=one.hints,
        )
        for name, one in {**made, **settings.templates}.items()
    }


async def follow_environments(
    settings: Settings,
    environments: EnvironmentStore,
    use: Callable[[dict[str, ForkServerSettings]], Awaitable[object]],
) -> None:
    """Use environments that ``kernelsvc env`` makes and removes while the server runs, until cancelled.

    Args:
        settings: of the server.
        environments: of its data directory.
        use: gets all templates after each change.
    """
    known = environments.marks()
    while True:
        await asyncio.sleep(ENVIRONMENT_SECONDS)
        try:
            if (marks := environments.marks()) == known:
                continue
            known = marks
            await use(fork_server_settings(settings))
        except (OSError, KernelsvcError) as error:
            log.warning("the environments of the data directory can't be used now: %s", error)
