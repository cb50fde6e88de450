"""The server's bridge to MCP servers, as a process of its own.

It outlives a server that is killed, so that no call is lost with the server. Its token is kept beside its lock, so that
the next server accepts it.
"""

from __future__ import annotations

import secrets

import msgspec

from kernelsvc import settings as conf
from kernelsvc.cli.companions.companion_process import CompanionProcess, secret_variables
from kernelsvc.linux import atomic_file
from kernelsvc.model.tokens import TokenRecord, hash_token

#: Environment variable with the path of the lock.
LOCK_VARIABLE = "KERNELSVC_BRIDGE_LOCK"
#: Name of the bridge's principal.
PRINCIPAL = "kernelsvc-bridge"


def prepare(settings: conf.Settings) -> tuple[conf.Settings, CompanionProcess | None]:
    """Return the settings with the bridge's token, and the bridge. None if the settings name no MCP server."""
    if not settings.tools_mcp:
        return settings, None
    path = settings.runtime_path() / "bridge.token"
    try:
        token = path.read_text()
    except OSError:
        token = ""
    if not token:
        token = secrets.token_hex(32)
        atomic_file.replace_bytes(path, token.encode(), mode=0o600)
    record = TokenRecord(name=PRINCIPAL, sha256=hash_token(token), scopes=frozenset({"provide"}))
    lock = settings.runtime_path() / "bridge.lock"
    words = ["bridge", *(["--config", settings.config_file] if settings.config_file else [])]
    env = {"KERNELSVC_TOKEN": token, LOCK_VARIABLE: str(lock)}
    bridge = CompanionProcess(words, lock, env, without=secret_variables(settings))
    return msgspec.structs.replace(settings, tokens=[*settings.tokens, record]), bridge
