"""Where the server is and which token to show: pure but for two reads, the environment and one small file.

In this order: what the caller gave, then ``KERNELSVC_URL`` and
``KERNELSVC_TOKEN``, then the file ``server.json`` that a running local server
keeps in its runtime directory. A token found with an address goes to that
address only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec

from kernelsvc.client.values import Unreachable
from kernelsvc.errors import BadRequest
from kernelsvc.linux import atomic_file

#: Name of the file, mode 0600: ``{"url": ..., "token": ..., "pid": ...}``.
INFO_FILE = "server.json"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A server.

    Attributes:
        base: ``http://host:port`` or ``https://...``, no slash at its end.
        token: sent as ``Authorization: Bearer``; None sends none.
        uds: the Unix socket to connect to, whatever ``base`` says.
    """

    base: str
    token: str | None = None
    uds: str | None = None

    @property
    def websocket(self) -> str:
        """The address of the JSON-RPC door."""
        return "ws" + self.base.removeprefix("http") + "/v1/ws"

    @property
    def shown(self) -> str:
        """For messages: without the token."""
        return f"unix:{self.uds}" if self.uds else self.base

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a running server tells the user who started it."""

    url: str
    token: str | None = None
    pid: int = 0


def parse(url: str, token: str | None = None) -> Address:
    """An address from a URL: ``http(s)://``, ``ws(s)://``, or ``unix:/path``; ``?token=`` in it counts.

    Raises:
        BadRequest: it is none of these.
    """
    parts = urlsplit(url)
    token = token or next(iter(parse_qs(parts.query).get("token", [])), None)
    if parts.scheme in ("unix", "http+unix"):
        path = unquote(parts.netloc) + parts.path
        if not path.startswith("/"):
            raise BadRequest(f"The address {url!r} lacks an absolute path; write unix:/path/to/socket.")
        return Address(base="http://localhost", token=token, uds=path)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.netloc:
        raise BadRequest(f"The address {url!r} is none; write http://HOST:PORT or unix:/path/to/socket.")
    return Address(base=f"{scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1/ws')}", token=token)


def find(
    url: str | None = None,
    token: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    runtime_dir: Path | None = None,
) -> Address:
    """The server that is meant.

    Args:
        url: as ``parse`` takes it; None looks further.
        token: shown to whatever address is found.
        env: the environment; None is the process's own.
        runtime_dir: where a local server's info file would be; None asks the settings.

    Raises:
        Unreachable: no address was given and no local server is running.
    """
    env = os.environ if env is None else env
    if url := url or env.get("KERNELSVC_URL"):
        return parse(url, token or env.get("KERNELSVC_TOKEN"))
    info = read_info(runtime_dir or _runtime_dir(env))
    if info is None:
        raise Unreachable(
            "No address was given and no server of yours is running here; "
            "start one with 'kernelsvc serve', or set KERNELSVC_URL and KERNELSVC_TOKEN."
        )
    return parse(info.url, token or env.get("KERNELSVC_TOKEN") or info.token)


def _runtime_dir(env: Mapping[str, str]) -> Path:
    # Only here does the client look at the server's settings: the platform's rule for the
    # directory must not be written down twice.
    from kernelsvc import settings

    return settings.load(env=env).runtime_path()


def read_info(runtime_dir: Path) -> ServerInfo | None:
    """The info file of a server that lives, or None; one left behind by a server that is gone counts as none."""
    try:
        info = msgspec.json.decode((runtime_dir / INFO_FILE).read_bytes(), type=ServerInfo)
    except (OSError, msgspec.DecodeError):
        return None
    return info if _alive(info.pid) else None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_info(runtime_dir: Path, info: ServerInfo) -> Path:
    """Leave the info file, mode 0600, whole or not at all."""
    path = runtime_dir / INFO_FILE
    atomic_file.replace_bytes(path, msgspec.json.encode(info))
    return path


def quoted(path: str) -> str:
    """A file's name as part of a URL."""
    return "/".join(quote(part, safe="") for part in path.split("/"))


def without_none(**params: Any) -> dict[str, Any]:
    """Parameters as a request carries them: what is None is left out."""
    return {name: value for name, value in params.items() if value is not None}
