"""Choose the layers that confine a session: policy, probe, limits and paths in, a plan and a report out.

Theory of operation. This module is pure. A layer is wanted when the policy is not ``off`` and the probe found that it
works here. Each wanted layer is in the plan, and each layer in the plan is applied or the session does not start
(``kernelsvc.guest.confine.confine``). Each other layer is in the report's ``not_enforced`` with the probe's reason. So
the report never claims more than was applied.

``isolation`` summarizes the layers in one word:

========== ======================================================================
full       private root, own pid, network and ipc namespaces, no capability,
           no_new_privs, seccomp, a hard limit of tasks. As root, a user of its own
filtered   as full, and connections reach the proxy, which applies the rules of the limits
networked  the same with the host's network, which the limits asked for
files      no namespaces. Landlock protects files, seccomp the network
process    less than that: rlimits and the watchdog, perhaps seccomp
none       the policy is ``off``
========== ======================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from kernelsvc.errors import BadRequest, SandboxUnavailable
from kernelsvc.guest.confine.confine import PLAN_VERSION
from kernelsvc.model.events import NotEnforced, SandboxReport
from kernelsvc.model.limits import Enforcement, Limits, MiB
from kernelsvc.model.network import trust
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.storage.mounts import WORKSPACE_DIR, Bind
from kernelsvc.sandbox import seccomp
from kernelsvc.sandbox.branch_dirs import later_branches_dir
from kernelsvc.sandbox.probe_result import Layer, Probe
from kernelsvc.sandbox.rootfs_paths import RootfsPaths

Policy = Literal["required", "best-effort", "off"]

#: Namespaces without which there is no private root. Ordinary users need "user", too.
_CORE_NAMESPACES = ("mount", "pid", "ipc")
#: The layer of ``kernelsvc.sandbox.own_inodes``.
OWN_INODES = "own inodes"
_DEVICES = ["null", "zero", "full", "random", "urandom"]
#: Files that describe the host or are for root. They are covered in the session's /proc.
_PROC_MASKS = [
    *("acpi", "asound", "bus", "cmdline", "config.gz", "driver", "dynamic_debug", "fs", "interrupts", "iomem"),
    *("ioports", "irq", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags"),
    *("latency_stats", "modules", "mtrr", "pagetypeinfo", "sched_debug", "schedstat", "scsi", "slabinfo", "softirqs"),
    *("sysrq-trigger", "sysvipc", "timer_list", "tty", "vmallocinfo", "zoneinfo"),
]
_INSIDE_ID = 1000
_LIVE_OOM_SCORE = 500
#: Directories for temporary files. A confined session has its own.
SCRATCH = ("/tmp", "/dev/shm")
#: Path of the session's directory for code that models write as in OpenAI's containers.
DATA = "/mnt/data"
#: Directories that a session and its branches write to, besides their own. The last one exists only with a workspace.
WRITABLE = (*SCRATCH, WORKSPACE_DIR)
_SCRATCH_SHARE = 4  # /tmp and /dev/shm may each hold a quarter of the session's memory
_MIN_SCRATCH, _MAX_SCRATCH = 16 * MiB, 4096 * MiB
#: Where pip installs, below the session's directory: the prefix of Python's user scheme (sysconfig, ``posix_user``).
PACKAGES_DIR = ".local"
#: Tasks in addition to the session's: the init, and parked checkpoints.
SPARE_TASKS = 8
#: CPU seconds between SIGXCPU and SIGKILL (setrlimit(2)).
_CPU_GRACE_SECONDS = 5

#: Where the wheelhouse is inside.
WHEELS = "/wheels"
#: Paths that sandboxes make or that programs expect to be empty or absent.
_RESERVED = (
    *(
        "/bin",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib64",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/sessions",
        "/sys",
        "/tmp",
    ),
    *("/usr", "/var", WHEELS),
)


class ConfinementRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One session to confine.

    Attributes:
        policy: whether the session may start without confinement.
        limits: its limits.
        paths: paths that it sees read-only.
        root: an existing empty directory, mounted over in the session's namespace only.
        workdir: its directory on this machine.
        home: the path of that directory inside, below ``/home``.
        group_dir: a directory that holds ``workdir`` and the directories of its branches. It is visible as ``/home``
            instead (``/sessions`` if Python itself lies below ``/home``), and ``home`` is a path below that.
        branch_depth: how many times this session was branched before. It may not write to those branches' directories.
        share: directories visible and writable at their own path (a kernelspec kernel's sockets).
        binds: further directories, at paths of their own.
        wheelhouse: directory of wheels for pip, or "".
        mapped: sources of writable binds that have the owner of ``workdir``, so that ``idmap`` holds for them.
        identity: device and inode of the directory that is mounted. A replacement is refused.
        uid: user and group of the host for this session, if the host runs as root.
        reachable: whether any user may walk to ``workdir`` and to the read-only paths.
        idmap: path of a user namespace that maps the directory's owner to ``uid``.
        quota: whether the directory has a quota, ``limits.disk_bytes``.
        cgroup: files of cgroups to join, by writing "0".
        controllers: the limits that those cgroups enforce: memory, pids, cpu.
        env: environment variables, in addition to a small default environment.
        certificates: directory with the certificate of the egress proxy, or "" if no rule needs requests to be read.
        network_files: text of the host's files that name resolution reads, by path. Shown if the session has a network.
        hostname: the name that uname(2) returns.
    """

    policy: Policy
    limits: Limits
    paths: RootfsPaths
    root: str
    workdir: str
    home: str = "/home/user"
    group_dir: str | None = None
    branch_depth: int = 0
    share: list[str] = []
    binds: list[Bind] = []
    wheelhouse: str = ""
    mapped: list[str] = []
    identity: tuple[int, int] | None = None
    uid: int | None = None
    reachable: bool = True
    idmap: str | None = None
    quota: bool = False
    cgroup: list[str] = []
    controllers: frozenset[str] = frozenset()
    env: dict[str, str] = {}
    certificates: str = ""
    network_files: dict[str, str] = {}
    hostname: str = "session"


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen confinement of a session.

    Attributes:
        plan: plain JSON for ``kernelsvc.guest.confine.confine``.
        report: for users, clients and the journal.
    """

    plan: dict[str, Any]
    report: SandboxReport


def confine(request: ConfinementRequest, probe: Probe) -> Confinement:
    """Return the plan and the report for one session.

    Raises:
        SandboxUnavailable: the policy is ``required`` and this machine can't confine, or it can't show directories.
        BadRequest: the further path of a directory is in use.
    """
    wanted = _Wanted(request, probe)
    report = _report(request, probe, wanted)
    if request.policy == "required" and report.isolation not in ("full", "filtered", "networked"):
        missing = "; ".join(f"{lack.layer}: {lack.why}" for lack in report.not_enforced) or "see kernelsvc doctor"
        raise SandboxUnavailable(
            f"This machine can't confine a session as required ({missing}). Run 'kernelsvc doctor'.",
            isolation=report.isolation,
            not_enforced=[msgspec.to_builtins(lack) for lack in report.not_enforced],
        )
    if request.binds and not wanted.view:
        raise SandboxUnavailable(
            "A session with mounts needs a private root, which this machine or the setting sandbox does not give it. "
            "Run 'kernelsvc doctor', or leave the mounts out."
        )
    for bind in request.binds:
        if bind.link and not _is_free(bind.link, request):
            raise BadRequest(
                f"The path {bind.link!r} is in use in sessions. Choose one such as /mnt/{bind.link.rpartition('/')[2]}."
            )
    return Confinement(plan=_plan(request, probe, wanted), report=report)


class _Wanted:
    """The layers that a session gets. Each decision is here once."""

    def __init__(self, request: ConfinementRequest, probe: Probe) -> None:
        limits = request.limits
        on = request.policy != "off"
        self.root = probe.root
        core = all(probe.works(f"{name} namespace") for name in _CORE_NAMESPACES) and probe.works("filesystem")
        # In a private root another user can reach every bind mount. Without one it
        # needs search permission for the directories above the session's and Python's.
        may_become = on and probe.root and probe.works("user") and request.uid is not None
        self.become = may_become and (core or request.reachable)
        self.user_namespace = on and core and not probe.root and probe.works("user namespace")
        self.view = on and core and (self.user_namespace or self.become)
        self.own_inodes = self.view and probe.works(OWN_INODES)
        self.proc = self.view and probe.works("proc")
        self.net = self.view and limits.network != "host" and probe.works("net namespace")
        self.rules = limits.network if isinstance(limits.network, NetworkRules) else None
        self.egress = self.net and self.rules is not None and probe.works("egress")
        self.seccomp = on and probe.works("seccomp")
        self.landlock = on and probe.works("landlock")
        self.capabilities = on and probe.works("capabilities")
        # getrlimit(2): RLIMIT_NPROC counts the processes of a user, within a user namespace. So it limits one session
        # only when the session has a user or a user namespace of its own.
        self.task_rlimit = limits.processes is not None and (
            self.become or (self.user_namespace and probe.works("task rlimit"))
        )
        # It counts a session and its branches together. With a cgroup for each they are counted apart.
        self.shared_tasks = self.task_rlimit and "pids" not in request.controllers
        self.inet = limits.network == "host" or self.net
        self.memory_is_hard = "memory" in request.controllers
        self.memfd = self.memory_is_hard or limits.memory_bytes is None
        self.namespaces = self._namespaces(probe)

    def _namespaces(self, probe: Probe) -> list[str]:
        if not self.view:
            return []
        extra = [name for name in ("uts", "cgroup") if probe.works(f"{name} namespace")]
        user = ["user"] if self.user_namespace else []
        return [*user, *_CORE_NAMESPACES, *(["net"] if self.net else []), *extra]


# --- the plan ----------------------------------------------------------------------


def _plan(request: ConfinementRequest, probe: Probe, wanted: _Wanted) -> dict[str, Any]:
    inside = _ids_inside(request, wanted)
    become = {"uid": request.uid, "gid": request.uid} if wanted.become else None
    home = _home(request) if wanted.view else request.workdir
    filters = {
        "kernel": seccomp.kernel_program(
            probe.arch, inet=wanted.inet, memfd=wanted.memfd, connect=wanted.view or wanted.inet
        ).hex(),
        "init": seccomp.init_program(probe.arch).hex(),
    }
    return {
        "version": PLAN_VERSION,
        "cgroup": list(request.cgroup),
        "namespaces": wanted.namespaces,
        "inside": inside,
        "become": become,
        "view": _view(request, wanted, inside) if wanted.view else None,
        "hostname": request.hostname,
        "egress": wanted.rules.ports() if wanted.egress and wanted.rules is not None else None,
        # capabilities(7): dropping from the bounding set needs CAP_SETPCAP, which root has, and the maker of a
        # user namespace in it.
        "bounding": wanted.capabilities and (wanted.become or wanted.user_namespace),
        "capabilities": wanted.capabilities,
        "no_new_privs": request.policy != "off",
        "guard_init": request.policy != "off",
        "home": home,
        "oom_score_adj": _LIVE_OOM_SCORE if wanted.proc or not wanted.view else None,
        "rlimits": _rlimits(request.limits, wanted),
        "data_bytes": data_bytes(request.limits, hard=wanted.memory_is_hard),
        "landlock": _landlock(request, wanted, home) if wanted.landlock else None,
        "seccomp": filters if wanted.seccomp else None,
        "env": _environment(request, home, confined=wanted.view),
    }


def _ids_inside(request: ConfinementRequest, wanted: _Wanted) -> dict[str, int]:
    number = request.uid if wanted.become and request.uid is not None else _INSIDE_ID
    return {"uid": number, "gid": number}


def _home(request: ConfinementRequest) -> str:
    if request.group_dir is None:
        return request.home
    return f"{_group_home(request)}/{request.workdir.removeprefix(request.group_dir).strip('/')}"


def _group_home(request: ConfinementRequest) -> str:
    """Return the path of a group's directory inside. It covers the files there, so a Python environment is avoided."""
    taken = any(target.startswith("/home/") for _, target in request.paths.readonly)
    return "/sessions" if taken else "/home"


def _view(request: ConfinementRequest, wanted: _Wanted, inside: dict[str, int]) -> dict[str, Any]:
    own = (request.workdir, request.home) if request.group_dir is None else (request.group_dir, _group_home(request))
    return {
        "root": request.root,
        "links": request.paths.links
        | {"/var/tmp": "../tmp"}
        | _data_link(request)
        | {bind.link: bind.target for bind in request.binds if bind.link},
        "readonly": [list(pair) for pair in request.paths.readonly],
        "overlays": request.paths.overlays if wanted.own_inodes else {},
        "writable": [list(own), *([path, path] for path in request.share)],
        "binds": [
            *([bind.source, bind.target, bind.writable, bind.source in request.mapped] for bind in request.binds),
            *([[request.wheelhouse, WHEELS, False, False]] if request.wheelhouse else []),
            *([[request.certificates, trust.INSIDE, False, False]] if request.certificates else []),
        ],
        "identity": request.identity,
        "hidden": request.paths.hidden,
        "idmap": request.idmap,
        "files": _etc_files(inside, request),
        "devices": _DEVICES,
        "proc": wanted.proc,
        "proc_masks": _PROC_MASKS,
        "tmp_bytes": _scratch(request.limits),
        "shm_bytes": _scratch(request.limits),
    }


def _data_link(request: ConfinementRequest) -> dict[str, str]:
    """Return the link at the path that models expect for their files. OpenAI's containers have them there.

    A bind below the path would follow the link to a path of the host, so there is no link then.
    """
    links = [bind.link for bind in request.binds if bind.link]
    taken = any(_overlap(DATA, each) for each in [*_bound(request), *links])
    return {} if taken else {DATA: _home(request)}


def _bound(request: ConfinementRequest) -> list[str]:
    """Return the paths inside that the machine's own directories have."""
    return [target for _, target in request.paths.readonly] + [*request.paths.links, *request.share]


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _is_free(path: str, request: ConfinementRequest) -> bool:
    """Return whether a path inside can become a link. A mount below a link would follow it out of the new root."""
    taken = [*_bound(request), *(bind.target for bind in request.binds), *_RESERVED]
    return not any(_overlap(path, each) for each in taken)


def _etc_files(inside: dict[str, int], request: ConfinementRequest) -> dict[str, str]:
    uid, gid = inside["uid"], inside["gid"]
    networked, hostname = request.limits.network != "none", request.hostname
    # A copy of resolv.conf's text: it is often a link into /run, which sessions don't see.
    shown = dict(request.network_files) if networked else {}
    if isinstance(request.limits.network, NetworkRules):
        shown = {"/etc/resolv.conf": "nameserver 127.0.0.1\n"}  # the proxy answers there
    known = shown.pop("/etc/hosts", "")
    return {
        **shown,
        **(trust.TRUST_FILES if request.certificates else {}),
        "/etc/passwd": f"user:x:{uid}:{gid}:user:/home/user:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
        "/etc/group": f"user:x:{gid}:\nnogroup:x:65534:\n",
        "/etc/hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost\n{known}",
        "/etc/hostname": hostname + "\n",
        # nsswitch.conf(5): other services than these need sockets of the host that sessions don't see.
        "/etc/nsswitch.conf": f"passwd: files\ngroup: files\nhosts: files{' dns' if networked else ''}\n",
    }


def _scratch(limits: Limits) -> int:
    share = _MAX_SCRATCH if limits.memory_bytes is None else limits.memory_bytes // _SCRATCH_SHARE
    return max(_MIN_SCRATCH, min(share, _MAX_SCRATCH))


def _rlimits(limits: Limits, wanted: _Wanted) -> dict[str, tuple[int, int]]:
    maximum: dict[str, int | None] = {
        "CORE": 0,
        "MSGQUEUE": 0,
        "RTPRIO": 0,
        "MEMLOCK": 64 * 1024,
        "NOFILE": limits.open_files,
        "FSIZE": limits.disk_bytes,
        "CPU": None if limits.cpu_seconds is None else max(1, round(limits.cpu_seconds)),
        "NPROC": limits.processes + SPARE_TASKS if wanted.shared_tasks and limits.processes else None,
    }
    found = {name: (value, value) for name, value in maximum.items() if value is not None}
    if "CPU" in found:
        # setrlimit(2): at the soft limit Linux sends SIGXCPU, which names the cause, and at the hard limit SIGKILL.
        # If a process ignores SIGXCPU, the watchdog ends it before the hard limit.
        found["CPU"] = (found["CPU"][0], found["CPU"][0] + _CPU_GRACE_SECONDS)
    return found


def data_bytes(limits: Limits, *, hard: bool) -> int | None:
    """Return RLIMIT_DATA beyond the memory mapped at the start, in bytes, or None for no limit.

    It is a little lower than a hard memory limit. A large allocation then raises ``MemoryError``, with every variable
    kept, before the OOM killer ends the kernel.
    """
    if limits.memory_bytes is None:
        return None
    if not hard:
        return limits.memory_bytes
    return limits.memory_bytes - max(16 * MiB, limits.memory_bytes // 16)


def _landlock(request: ConfinementRequest, wanted: _Wanted, home: str) -> dict[str, Any]:
    if wanted.view:
        # Of the group's directory only its own and that for its branches, so that it can't replace others by links.
        own = [home] if request.group_dir is None else [home, str(later_branches_dir(Path(home), request.branch_depth))]
        grants = [["/", "read"], *([path, "write"] for path in [*own, *SCRATCH]), ["/dev", "device"]]
        # Only its own directory: files of another process there would change its memory or its OOM score.
        grants += [["/proc/self", "device"]] if wanted.proc else []
        grants += [[path, "write"] for path in request.share]
        grants += [[bind.target, "write"] for bind in request.binds if bind.writable]
        return {"grants": grants, "scope": True}
    # Without a private root the rules grant the host's own paths one by one.
    readable = [source for source, _ in request.paths.readonly]
    readable += [request.wheelhouse] if request.wheelhouse else []
    readable += request.network_files if request.limits.network == "host" else {}
    grants = [[path, "read"] for path in [*readable, *request.paths.links, "/proc"]]
    grants += [[f"/dev/{name}", "device"] for name in _DEVICES]
    grants += [[path, "write"] for path in [request.group_dir or request.workdir, *request.share]]
    return {"grants": grants, "scope": True}


#: pip fails at the first look-up. With its defaults it tries for eight seconds.
_PIP_WITHOUT_NETWORK = {"PIP_RETRIES": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off"}


def _environment(request: ConfinementRequest, home: str, *, confined: bool) -> dict[str, str]:
    scratch = "/tmp" if confined else home
    user = {"USER": "user", "LOGNAME": "user"} if confined else {}
    return {
        "LANG": "C.UTF-8",
        "PATH": request.paths.path,
        "SHELL": "/bin/sh",
        "TERM": "xterm-256color",
        **user,
        **(trust.trust_variables() if request.certificates else {}),
        **(_PIP_WITHOUT_NETWORK if request.limits.network == "none" else {}),
        **_package_variables(request, home, confined=confined),
        **request.env,
        "HOME": home,
        "PWD": home,
        "TMPDIR": scratch,
    }


def _package_variables(request: ConfinementRequest, home: str, *, confined: bool) -> dict[str, str]:
    """Return the variables that make pip install into the session's directory, and Python programs import from there.

    Only for a session that can reach an index or has a wheelhouse. The environment itself is read-only, and pip refuses
    --user in a virtual environment. With a prefix pip counts the environment's packages as installed. With a target it
    would not.
    """
    offline = request.limits.network == "none"
    if (offline and not request.wheelhouse) or not request.paths.site:
        return {}
    prefix = f"{home}/{PACKAGES_DIR}"
    return {
        "PIP_PREFIX": prefix,
        "PYTHONPATH": f"{prefix}/{request.paths.site}",
        "PATH": f"{request.paths.path}:{prefix}/bin",
        **_wheel_variables(request.wheelhouse and (WHEELS if confined else request.wheelhouse), offline=offline),
    }


def _wheel_variables(wheels: str, *, offline: bool) -> dict[str, str]:
    """Return the variables that make pip and uv look into a directory of wheels, and nowhere else if offline."""
    if not wheels:
        return {}
    alone = {"PIP_NO_INDEX": "1", "UV_NO_INDEX": "1", "UV_OFFLINE": "1"} if offline else {}
    return {"PIP_FIND_LINKS": wheels, "UV_FIND_LINKS": wheels, **alone}


# --- the report ----------------------------------------------------------------------


def _report(request: ConfinementRequest, probe: Probe, wanted: _Wanted) -> SandboxReport:
    if request.policy == "off":
        return SandboxReport(policy="off", isolation="none", limits=_enforcement(request, wanted))
    enforced, missing = [], []
    for name, there in _layers(request, wanted).items():
        if there:
            enforced.append(name)
        elif (why := _missing_reason(name, request, probe)) is not None:
            missing.append(NotEnforced(layer=name, why=why))
    return SandboxReport(
        policy=request.policy,
        isolation=_isolation(request, wanted),
        enforced=enforced,
        not_enforced=missing,
        limits=_enforcement(request, wanted),
    )


def _layers(request: ConfinementRequest, wanted: _Wanted) -> dict[str, bool]:
    spaces = wanted.namespaces
    return {
        "session": True,
        "memory cgroup": "memory" in request.controllers,
        "pids cgroup": "pids" in request.controllers,
        "cpu cgroup": "cpu" in request.controllers,
        "user namespace": wanted.user_namespace,
        "user": wanted.become,
        "mount namespace": "mount" in spaces,
        "pid namespace": "pid" in spaces,
        "ipc namespace": "ipc" in spaces,
        "net namespace": wanted.net,
        "egress": wanted.egress,
        "uts namespace": "uts" in spaces,
        "cgroup namespace": "cgroup" in spaces,
        "filesystem": wanted.view,
        OWN_INODES: wanted.own_inodes and not _shared_sources(request),
        "proc": wanted.proc,
        "rlimits": True,
        "capabilities": wanted.capabilities,
        "no_new_privs": True,
        "landlock": wanted.landlock,
        "seccomp": wanted.seccomp,
    }


def _missing_reason(name: str, request: ConfinementRequest, probe: Probe) -> str | None:
    """Return why a layer is missing, or None if the session loses nothing without it."""
    if name == ("user namespace" if probe.root else "user"):
        return None  # a user and a user namespace replace each other
    if name == "egress" and isinstance(request.limits.network, str):
        return None  # the session has no rules
    if name == "cpu cgroup" and request.limits.cpu_cores is None:
        return None  # the session has no CPU limit
    if name == "net namespace" and request.limits.network == "host":
        return "the session asked for the host's network"
    if name == "user" and not request.reachable and probe.works("user"):
        return f"another user can't walk to {request.workdir} or to Python; make the directories above searchable"
    layer = probe.layers.get(name, Layer(name=name, ok=False, why="not tried"))
    if layer.ok and name == OWN_INODES and (shared := _shared_sources(request)):
        return f"no overlay can show {shared[0]} ({len(shared)} of {len(request.paths.readonly)} paths)"
    if layer.ok:
        return "needs the layers above that are missing"
    return layer.why


def _shared_sources(request: ConfinementRequest) -> list[str]:
    return [source for source, _ in request.paths.readonly if source not in request.paths.overlays]


def _isolation(request: ConfinementRequest, wanted: _Wanted) -> str:
    tasks = wanted.task_rlimit or "pids" in request.controllers
    if wanted.view and wanted.seccomp and wanted.capabilities and tasks:
        if wanted.egress:
            return "filtered"
        if wanted.net:
            return "full"
        if request.limits.network == "host":
            return "networked"
    if wanted.landlock and wanted.seccomp:
        return "files"
    return "process"


def _enforcement(request: ConfinementRequest, wanted: _Wanted) -> dict[str, str]:
    """Return how each limit is enforced, by the names of ``Limits``. Limits without a value are omitted."""
    controllers = request.controllers
    sealed_off = wanted.net or (wanted.seccomp and not wanted.inet)
    enforcement: dict[str, Enforcement] = {
        "memory_bytes": "hard" if "memory" in controllers else "supervised",
        "cpu_cores": "hard" if "cpu" in controllers else "none",
        "cell_seconds": "supervised",
        "cpu_seconds": "per process",
        "processes": "hard" if "pids" in controllers or wanted.task_rlimit else "supervised",
        "open_files": "per process",
        "disk_bytes": "hard" if request.quota else "supervised",
        "files": "hard" if request.quota else "supervised",
        "output_bytes": "supervised",
        "idle_seconds": "supervised",
        "lifetime_seconds": "supervised",
    }
    words: dict[str, str] = {
        name: word for name, word in enforcement.items() if getattr(request.limits, name) is not None
    }
    if request.limits.network == "none":
        words["network"] = "hard" if sealed_off else "none"
    elif wanted.rules is not None:
        words["network"] = "hard" if wanted.egress else "none"
    return words
