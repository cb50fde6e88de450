"""The host protocol: its version, the host's settings and the requests that carry more than a kernel's id.

The server's process imports of ``host`` only this module and ``host.client``. Each request is one datagram
(``linux.seqpacket``). The second half of ``docs/reference/wire.md`` is the specification. The names on the wire are a
contract: a server talks to a host that another version started. Where a name on the wire is not the field's word, the
attribute has a better name and ``rename`` keeps the old one on the wire.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

from kernelsvc import __version__
from kernelsvc.model.limits import Limits
from kernelsvc.model.storage.mounts import Bind

#: Version of the protocol. A host refuses a server of another version.
VERSION = 1
#: Descriptors of a request. Spawn: the listening socket and both ends of two pipes. Start: standard input, output and
#: error. Exec: these three and the exec shim's end of a socket to the server. Copy: a pidfd.
SPAWN_FDS, START_FDS, EXEC_FDS, COPY_FDS = 5, 3, 4, 1
#: Sockets: one end of a socket on which the server gets them.
SOCKETS_FDS = 1


class ForkServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one template's fork server. See ``settings.Template``.

    Attributes:
        python: the interpreter; the host's own if empty.
        preload: modules that are imported before the first fork.
        allow_modules: modules that cells may import, or None for any.
        deny_modules: modules that cells may not import.
        hints: whether errors for models end with a fact about the session.
    """

    python: str = ""
    preload: list[str] = []
    allow_modules: list[str] | None = None
    deny_modules: list[str] = []
    hints: bool = True

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        """Return the environment of a session that asked for these variables."""
        return env if self.hints else {"KERNELSVC_HINTS": "0", **env}


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a kernel host.

    Attributes:
        runtime_dir: directory of its sockets and records, mode 0700.
        templates: fork servers by template name.
        sandbox: whether a session may start without confinement.
        hidden: directories that no session may see.
        hidden_files: files that no session may see: the configuration, and files with secrets.
        adoption_seconds: how long kernels, and the host itself, run without a server.
        orphan_seconds: how long kernels run without a server, if that differs from the host's time.
        mounts: directories that sessions may see read-only, whatever their owner is.
        wheelhouse: directory of wheels for pip, or "".
        limits: the server's limits, for the report of the layers that would be enforced.
        persistent: keep running without servers and kernels, as under systemd.
    """

    runtime_dir: str
    templates: dict[str, ForkServerSettings]
    sandbox: Literal["required", "best-effort", "off"] = "best-effort"
    hidden: list[str] = []
    hidden_files: list[str] = []
    adoption_seconds: float = 600.0
    orphan_seconds: float | None = None
    mounts: list[str] = []
    wheelhouse: str = ""
    limits: Limits = Limits()
    persistent: bool = False

    def digest(self) -> str:
        """Return a hash that is equal for hosts of one version and equal settings.

        Apart from ``persistent``, and from ``hidden_files``: the host's unit may have a file of its own.
        """
        text = msgspec.json.encode(msgspec.structs.replace(self, persistent=False, hidden_files=[]), order="sorted")
        return hashlib.sha256(__version__.encode() + text).hexdigest()


class SpawnRequest(msgspec.Struct, frozen=True, kw_only=True, rename={"group_dir": "family"}):
    """``spawn``: fork a kernel from a template.

    Attributes:
        kernel: id of the kernel, unique for this host.
        session: id of the session, for the kernel's environment and for ``list``.
        template: name of the template.
        workdir: the session's directory.
        env: the session's environment variables.
        limits: the session's limits.
        group_dir: directory that holds ``workdir`` and the directories of its branches, or "" for none.
        binds: directories of the machine that the session sees besides its own.
    """

    kernel: str
    session: str
    template: str
    workdir: str
    env: dict[str, str]
    limits: Limits
    group_dir: str = ""
    binds: list[Bind] = []


class StartProcessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``start``: run a kernelspec kernel's process.

    Attributes:
        kernel: id of the kernel, unique for this host.
        session: id of the session.
        argv: the program's path and its arguments.
        env: the whole environment of the process.
        cwd: the session's directory, where the process starts.
        limits: the session's limits.
        share: directory of the kernel's connection file and sockets, which the kernel may write.
        program: the kernel's program if another one starts it. The environments of both are visible.
        binds: directories of the machine that the session sees besides its own.
    """

    kernel: str
    session: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    limits: Limits
    share: str
    program: str = ""
    binds: list[Bind] = []


class RegisterCopyRequest(msgspec.Struct, frozen=True, kw_only=True, rename={"original": "of", "sidecar_of": "beside"}):
    """``enlist``: register a checkpoint or a branch that a kernel forked.

    Attributes:
        kernel: id of the checkpoint or branch.
        original: id of the kernel that forked it.
        home: its directory as seen inside, or "" for that of ``original``.
        limits: for a branch: the limits of its own cgroup, in which ``find`` finds it.
        sidecar_of: for the first checkpoint of a branch: the branch, whose cgroup it shares.
    """

    kernel: str
    original: str
    home: str = ""
    limits: Limits | None = None
    sidecar_of: str = ""


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``exec``: run a program in the sandbox of a kernel.

    Attributes:
        kernel: id of the kernel.
        argv: the program and its arguments.
        env: variables in addition to those of the sandbox.
        cwd: directory as seen inside, or "" for the session's.
        terminal: whether the three standard descriptors are a terminal.
    """

    kernel: str
    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    terminal: bool = False


class SocketsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``sockets``: make unconnected TCP sockets in the network namespace of a kernel.

    Attributes:
        kernel: id of the kernel.
        count: how many.
    """

    kernel: str
    count: Annotated[int, msgspec.Meta(ge=1, le=64)]
