"""Find the server's address and token.

In this order: the arguments, ``KERNELSVC_URL`` and ``KERNELSVC_TOKEN``, the file ``server.json`` in the runtime
directory of a running local server. A token from that file is only sent to the address in it.

The runtime directory is one for each data directory. If none of the settings names it, and the default one has no
running server, the client looks at all runtime directories of this user.
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
    """The address of a server, and a token for it.

    Attributes:
        base: ``http://host:port`` or ``https://...``, without a slash at the end.
        token: sent as ``Authorization: Bearer``. None sends no token.
        uds: path of a Unix socket to connect to. ``base`` is then only the ``Host`` header.
        on_behalf_of: the user of a backend, for whom the requests are.
    """

    base: str
    token: str | None = None
    uds: str | None = None
    on_behalf_of: str | None = None

    @property
    def websocket(self) -> str:
        """The URL of the JSON-RPC WebSocket."""
        return "ws" + self.base.removeprefix("http") + "/v1/ws"

    @property
    def shown(self) -> str:
        """The address for messages, without the token."""
        return f"unix:{self.uds}" if self.uds else self.base

    def headers(self) -> dict[str, str]:
        """Return the headers of each request."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return headers | ({"X-On-Behalf-Of": self.on_behalf_of} if self.on_behalf_of else {})


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``server.json``, for local clients of the user who started the server."""

    url: str
    token: str | None = None
    pid: int = 0


def parse(url: str, token: str | None = None) -> Address:
    """Parse a URL: ``http(s)://``, ``ws(s)://``, or ``unix:/path``. It may have the token as ``?token=``.

    White space around the URL and the token is dropped: a file with a token usually ends with a newline.

    Raises:
        BadRequest: the URL has another form, or the token has characters that no header can carry.
    """
    url = url.strip()
    parts = urlsplit(url)
    token = _clean_token(token or next(iter(parse_qs(parts.query).get("token", [])), None))
    if parts.scheme in ("unix", "http+unix"):
        path = unquote(parts.netloc) + parts.path
        if not path.startswith("/"):
            raise BadRequest(f"The address {url!r} has no absolute path. Write unix:/path/to/socket.")
        return Address(base="http://localhost", token=token, uds=path)
    # A user may paste the WebSocket's URL from the docs or from a log.
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.netloc:
        raise BadRequest(f"The address {url!r} is not valid. Write http://HOST:PORT or unix:/path/to/socket.")
    return Address(base=f"{scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1/ws')}", token=token)


def _clean_token(token: str | None) -> str | None:
    token = (token or "").strip()
    # RFC 9110, section 5.5: CR, LF and NUL are invalid in a field value, and text beyond ASCII has no defined form.
    if not (token.isascii() and token.isprintable()):
        raise BadRequest("The token has a control character or a letter beyond ASCII. Check where you copied it from.")
    return token or None


def find(
    url: str | None = None,
    token: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    runtime_dir: Path | None = None,
) -> Address:
    """Find the server to use.

    Args:
        url: a URL for ``parse``. The default is ``KERNELSVC_URL``, then the running local server.
        token: token for the server, from any source.
        env: environment variables. None means those of the process.
        runtime_dir: directory of the local server's ``server.json``. The default is the setting.

    Raises:
        Unreachable: there is no URL, and no local server runs, or more than one.
    """
    env = os.environ if env is None else env
    if url := url or env.get("KERNELSVC_URL"):
        return parse(url, token or env.get("KERNELSVC_TOKEN"))
    info = read_info(runtime_dir) if runtime_dir else _local_server(env)
    if info is None:
        raise Unreachable(
            "No address is set, and no server of yours is running here. "
            "Start one with 'kernelsvc serve', or set KERNELSVC_URL and KERNELSVC_TOKEN."
        )
    return parse(info.url, token or env.get("KERNELSVC_TOKEN") or info.token)


def _local_server(env: Mapping[str, str]) -> ServerInfo | None:
    # The client's only use of the server's settings: the default directory depends on the platform, and both sides must
    # agree on it.
    from kernelsvc import settings

    loaded = settings.load(env=env)
    expected = loaded.runtime_path()
    info = read_info(expected)
    if info is not None or any(loaded.sources[name] != "platform" for name in ("data_dir", "runtime_dir")):
        return info
    # A server with another --data-dir has a directory beside the default one.
    found = {each: info for each in _siblings(expected) if (info := read_info(each))}
    if len(found) > 1:
        listed = ", ".join(sorted(info.url for info in found.values()))
        raise Unreachable(f"Several servers of yours are running here: {listed}. Choose one with KERNELSVC_URL.")
    return next(iter(found.values()), None)


def _siblings(runtime_dir: Path) -> list[Path]:
    """Return the runtime directories beside one, those of this user only: another user's file could name any server."""
    try:
        return [each for each in runtime_dir.parent.iterdir() if each.is_dir() and each.stat().st_uid == os.getuid()]
    except OSError:
        return []


def read_info(runtime_dir: Path) -> ServerInfo | None:
    """Read the info file of a running server. Return None if there is none, or if its server has exited."""
    try:
        info = msgspec.json.decode((runtime_dir / INFO_FILE).read_bytes(), type=ServerInfo)
    except (OSError, msgspec.DecodeError):
        return None
    return info if _alive(info.pid) else None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return True
    try:
        # kill(2): with signal 0 no signal is sent, but existence and permission checks are still performed.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # EPERM: the process exists, and belongs to another user.
        return True
    return True


def write_info(runtime_dir: Path, info: ServerInfo) -> Path:
    """Write the info file atomically, mode 0600."""
    path = runtime_dir / INFO_FILE
    atomic_file.replace_bytes(path, msgspec.json.encode(info))
    return path


def quoted(path: str) -> str:
    """Percent-encode a file's path for a URL. Bytes that are not UTF-8 are surrogates, as in ``os.listdir``."""
    return "/".join(quote(part, safe="", errors="surrogateescape") for part in path.split("/"))


def without_none(**params: Any) -> dict[str, Any]:
    """Return the parameters of a request, without those that are None."""
    return {name: value for name, value in params.items() if value is not None}
