"""Values of the operator's secrets. The proxy reads them when it starts, before it is confined, and keeps them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kernelsvc.linux.command_output import output_of
from kernelsvc.model.network.policy import Refused
from kernelsvc.model.network.rules import ParsedRule
from kernelsvc.model.network.secrets import MAX_VALUE, MIN_VALUE, SecretSource

log = logging.getLogger(__name__)

#: Seconds for a command that prints a secret, and for all of them. The server waits for the proxy
#: (``client.START_SECONDS``), which needs the rest for its own start.
COMMAND_SECONDS, COMMANDS_SECONDS = 10.0, 20.0
# RFC 9110, section 5.5: the bytes of a field's value, without spaces at its ends.
_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff]([\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")


class Secret(NamedTuple):
    """A secret.

    Attributes:
        value: the text to send.
        hosts: the names to which it may be sent.
    """

    value: bytes
    hosts: tuple[str, ...]


def read_secrets(sources: Mapping[str, SecretSource]) -> dict[str, Secret]:
    """Read all secrets. Leave out one that can't be read, and log an error without its value."""
    found = {}
    end = time.monotonic() + COMMANDS_SECONDS
    for name, source in sources.items():
        try:
            found[name] = Secret(_checked(_read(source, end - time.monotonic())), source.hosts)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = f"the command ended with {error.returncode}" if hasattr(error, "returncode") else str(error)
            log.error("secret %s can't be read, so requests with it are refused: %s", name, why)
    return found


def _read(source: SecretSource, left: float) -> bytes:
    """Return the value of a secret. If a command prints it, the command may run for ``left`` seconds."""
    if source.file is not None:
        with Path(source.file).open("rb") as file:
            return file.read(MAX_VALUE + 2)
    if source.command is not None:
        if left <= 0:
            raise ValueError(f"the commands of other secrets took {COMMANDS_SECONDS:g} seconds. Make them faster")
        timeout = min(COMMAND_SECONDS, left)
        return output_of(source.command, seconds=timeout, most_bytes=MAX_VALUE + 2)
    # No command of a further secret inherits it. The variables with which a process began stay in its memory, where
    # other processes of its user could read them (proc(5), environ) until the proxy is confined.
    value = os.environb.pop(os.fsencode(source.env or ""), None)
    if value is None:
        raise ValueError(f"there is no environment variable {source.env}")
    return value


def _checked(data: bytes) -> bytes:
    value = data.removesuffix(b"\n").removesuffix(b"\r")
    if not MIN_VALUE <= len(value) <= MAX_VALUE:
        raise ValueError(f"it has {len(value)} bytes. Values have {MIN_VALUE} to {MAX_VALUE}")
    if not _VALUE.fullmatch(value):
        raise ValueError("it is not one line of text for a header")
    return value


def values_for(rule: ParsedRule, secrets: Mapping[str, Secret]) -> dict[str, bytes]:
    """Return the values of a rule's secrets.

    Raises:
        Refused: one is missing, or may not be sent to the rule's host. The server has checked it before.
    """
    values = {}
    for name in rule.secrets:
        secret = secrets.get(name)
        if secret is None:
            raise Refused(f"the secret {name} can't be read by the proxy")
        if rule.host.text not in secret.hosts:
            raise Refused(f"the secret {name} is not for this host")
        values[name] = secret.value
    return values
