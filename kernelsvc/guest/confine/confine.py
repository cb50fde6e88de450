"""Apply a confinement plan in the forked child, before any user code runs.

Theory of operation. ``kernelsvc.sandbox.plan`` decides, and this module executes. A plan is a JSON object. Each of its
layers is applied, or ``StepFailed`` is raised with the step's name, and the caller must then stop. No step is skipped
silently.

A further program in the sandbox takes another way: ``join``, a fork, ``exec_joined``.

The process tree, and which function each process calls::

    template ── fork ──> middle     enter(plan)     cgroup, session, namespaces, id maps
                           └─ fork ──> init         build(plan)     private root, /proc, lo, user, capabilities
                                         ├─ fork ──> kernel         seal(plan)   rlimits, Landlock, environment, seccomp
                                         └─ ...      guard_init(plan)   after that fork: protect itself from the kernel

A new pid namespace applies to children only (pid_namespaces(7)), so the middle process exists. It exits after it has
forked the init. The init is pid 1 of the namespace and trusted, and the kernel is never pid 1. ``enter``, ``build`` and
``seal`` each need a single-threaded process. ``seal`` comes last, since afterwards no step of this module works. Only
``restrict_writes`` still does, because a process can always tighten Landlock (landlock(7)).

Order: uid and gid are read before ``unshare``. The cgroup is joined before its files become unreachable. The bounding
set is dropped before the user changes (capabilities(7)), the user changes before ``no_new_privs``, and seccomp is last.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from kernelsvc.guest.confine import egress
from kernelsvc.guest.confine import linux as lx
from kernelsvc.guest.confine.rootfs import build_view
from kernelsvc.guest.private_modules import open_file, os, random

#: Version of the plan's format. A plan of another version is refused.
PLAN_VERSION = 1
#: The OOM killer chooses the live kernel before its checkpoints (proc(5), ``oom_score_adj``).
OOM_LIVE, OOM_PARKED = 300, 0


class StepFailed(Exception):
    """A layer of confinement could not be applied. The session must not start.

    Attributes:
        step: The layer's name as in the sandbox report.
    """

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"confinement: {step}: {why}")
        self.step = step


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepFailed(name, f"{type(error).__name__}: {error}") from error


def enter(plan: dict[str, Any]) -> None:
    """In the middle process: own session, cgroup, namespaces, id maps. The next ``fork`` creates the init.

    Raises:
        StepFailed: A layer could not be applied.
    """
    with _step("plan"):
        if plan["version"] != PLAN_VERSION:
            raise ValueError(f"version {plan['version']}, this guest knows {PLAN_VERSION}")
    with _step("session"):
        if os.getsid(0) != os.getpid():
            os.setsid()
    with _step("cgroup"):
        for path in plan["cgroup"]:
            lx.write_file(path, "0")
    if plan["namespaces"]:
        _unshare(plan)


def _unshare(plan: dict[str, Any]) -> None:
    uid, gid = os.getuid(), os.getgid()  # unmapped after unshare: both are then the overflow id (user_namespaces(7))
    with _step("namespaces"):
        lx.unshare(plan["namespaces"])
    if "user" in plan["namespaces"]:
        with _step("user namespace"):
            inside = plan["inside"]
            # Required before an unprivileged process may write gid_map (user_namespaces(7)).
            lx.write_file("/proc/self/setgroups", "deny")
            lx.write_file("/proc/self/uid_map", f"{inside['uid']} {uid} 1")
            lx.write_file("/proc/self/gid_map", f"{inside['gid']} {gid} 1")


def build(plan: dict[str, Any]) -> None:
    """In the init: private root, loopback, host name, user, capabilities, no_new_privs.

    Afterwards the working directory is ``plan["home"]``. The next ``fork`` creates the kernel. Call ``guard_init`` only
    after it.

    Raises:
        StepFailed: A layer could not be applied.
    """
    if plan["data_bytes"] is not None:
        with _step("rlimits"):
            # Read now: the new root may have no /proc.
            plan["data_idle_bytes"] = _data_bytes()
    if "pid" not in plan["namespaces"]:
        with _step("subreaper"):
            # Orphans become children of the init instead of the host's pid 1 (prctl(2)).
            lx.prctl(lx.PR_SET_CHILD_SUBREAPER, 1)
    if plan["view"] is not None:
        with _step("filesystem"):
            build_view(plan["view"])
    if "net" in plan["namespaces"]:
        with _step("loopback"):
            lx.raise_loopback()
    if plan.get("egress") is not None:
        with _step("egress"):
            plan["listeners"] = egress.open_listeners(plan["egress"])
    if "uts" in plan["namespaces"]:
        with _step("hostname"):
            lx.set_hostname(plan["hostname"])
    _drop(plan)
    with _step("home"):
        os.chdir(plan["home"])


def _drop(plan: dict[str, Any]) -> None:
    if plan["bounding"]:
        with _step("bounding set"):
            lx.drop_bounding_set()
    if plan["become"] is not None:
        with _step("user"):
            lx.become(plan["become"]["uid"], plan["become"]["gid"], dumpable=not plan.get("concealed"))
    if plan["capabilities"]:
        with _step("capabilities"):
            lx.drop_capabilities()
    if plan["no_new_privs"]:
        with _step("no_new_privs"):
            # Required for seccomp and Landlock without privileges, and exec then ignores set-user-ID bits (prctl(2)).
            lx.prctl(lx.PR_SET_NO_NEW_PRIVS, 1)


def guard_init(plan: dict[str, Any]) -> None:
    """In the init, after it has forked the kernel: protect the init from the kernel.

    The init becomes not dumpable: ``/proc/1/mem``, ``fd`` and ``environ`` then belong to root, and ptrace is refused
    (prctl(2), PR_SET_DUMPABLE). Its seccomp filter allows no exec, no new socket and no new file, so import and prepare
    everything before.

    Raises:
        StepFailed: A layer could not be applied.
    """
    if not plan["guard_init"]:
        return
    with _step("init guard"):
        lx.prctl(lx.PR_SET_DUMPABLE, 0)
        if plan["seccomp"] is not None:
            lx.install_filter(bytes.fromhex(plan["seccomp"]["init"]))


def seal(plan: dict[str, Any]) -> None:
    """In the kernel, last before user code: session, rlimits, Landlock, environment, seccomp.

    The caller closes descriptors (``linux.close_others``).

    Raises:
        StepFailed: A layer could not be applied.
    """
    with _step("session"):
        if os.getsid(0) != os.getpid():
            os.setsid()
    if "pid" not in plan["namespaces"]:
        with _step("parent death signal"):
            # Without a pid namespace, only this ends the kernel together with its init (prctl(2), PR_SET_PDEATHSIG).
            lx.prctl(lx.PR_SET_PDEATHSIG, 9)
    if plan["oom_score_adj"] is not None:
        with _step("oom score"):
            # The OOM killer chooses the kernel before its init and its checkpoints (proc(5)).
            lx.write_file("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
    _limit(plan)
    if plan["landlock"] is not None:
        with _step("landlock"):
            lx.landlock([(p, k) for p, k in plan["landlock"]["grants"]], scope=plan["landlock"]["scope"])
    with _step("environment"):
        os.environ.clear()
        os.environ.update(plan["env"])
        # tempfile has cached a directory of another filesystem view.
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            tempfile.tempdir = None
    _reseed()
    if plan["seccomp"] is not None:
        with _step("seccomp"):
            lx.install_filter(bytes.fromhex(plan["seccomp"]["kernel"]))


def restrict_writes(write: list[str], *, scope: bool) -> None:
    """In a branch or its parent: limit writes to files below these directories.

    Adds a Landlock layer on top of the session's. Reading is unchanged. It also protects the memory of related
    processes (``/proc/PID/mem``): Linux allows ptrace access only to a process with the same or more Landlock layers
    (landlock(7), "Ptrace restrictions"). At most 16 layers can be stacked.

    Args:
        write: Directories as seen inside the sandbox.
        scope: Whether to also block signals to processes outside of the new layer, if Linux supports it.

    Raises:
        StepFailed: Landlock refused.
    """
    with _step("landlock"):
        grants = [("/", "read"), *((path, "device") for path in ("/dev", "/proc/self") if os.path.isdir(path))]
        lx.landlock(grants + [(path, "write") for path in write], scope=scope)


def lower_data(most: int) -> None:
    """In a branch: allow ``most`` bytes more than its parent had, within the parent's hard limit (``RLIMIT_DATA``)."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + most
    if hard == resource.RLIM_INFINITY or wanted < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


def program_plan(plan: dict[str, Any], secret: Iterable[str]) -> dict[str, Any]:
    """Return the part of a plan that ``join`` needs. The host stores it on disk, so it has no secrets.

    Args:
        plan: The sandbox's plan.
        secret: Environment variables to omit, since they belong to the session.
    """
    left = {name: value for name, value in plan.items() if name not in ("view", "cgroup", "seccomp")}
    filters = plan["seccomp"]
    withheld = set(secret)
    return left | {
        "seccomp": None if filters is None else {"kernel": filters["kernel"]},
        "env": {name: value for name, value in plan["env"].items() if name not in withheld},
    }


def hide_from_sandbox(plan: dict[str, Any]) -> None:
    """Hide a fork of the kernel host that will become a program: its copy of the host's memory must be unreadable.

    Call it before any session can see the process. A process that is not dumpable has a ``/proc`` directory that
    belongs to root, so its files there are written now. ``exec`` makes the program dumpable again, with its own memory.

    Raises:
        StepFailed: Linux refused.
    """
    if plan["oom_score_adj"] is not None:
        with _step("oom score"):
            lx.write_file("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
        plan["oom_score_adj"] = None
    with _step("conceal"):
        lx.forget_start()
        lx.prctl(lx.PR_SET_DUMPABLE, 0)
    plan["concealed"] = True


def join(plan: dict[str, Any], cgroup: list[str], kernel: int) -> None:
    """Enter the cgroup and the namespaces of an existing sandbox. A child that is forked next is in all of them.

    For a fresh single-threaded fork. It keeps its privileges, so only ``exec_joined`` may follow.

    Args:
        plan: The sandbox's plan, see ``program_plan``.
        cgroup: Files that add the writer to the cgroup.
        kernel: A pidfd of the sandbox's kernel. Linux refuses one of the init, which is not dumpable (setns(2)).

    Raises:
        StepFailed: A layer could not be entered.
    """
    with _step("session"):
        os.setsid()
    with _step("cgroup"):
        for path in cgroup:
            lx.write_file(path, "0")
    if plan["namespaces"]:
        with _step("namespaces"):
            lx.join(kernel, plan["namespaces"])


def exec_joined(
    plan: dict[str, Any], argv: list[str], env: dict[str, str], cwd: str, write: list[str] | None
) -> NoReturn:
    """Run a program with at most the rights of the sandbox's kernel, in a child of the process that called ``join``.

    Args:
        plan: The sandbox's plan, see ``program_plan``.
        argv: The program and its arguments, searched on the plan's PATH.
        env: Variables to add to the environment.
        cwd: The directory in which it starts.
        write: The only shared directories that it may write to. None allows all.

    Raises:
        StepFailed: A layer could not be applied.
        OSError: The directory or the program does not exist.
    """
    if plan["data_bytes"] is not None:
        with _step("rlimits"):
            plan["data_idle_bytes"] = _data_bytes()
    _drop(plan)
    with _step("parent death signal"):
        lx.prctl(lx.PR_SET_PDEATHSIG, 9)
    plan["env"] = {**plan["env"], **env}
    os.chdir(plan["home"])
    seal(plan)
    if write is not None and plan["landlock"] is not None:
        restrict_writes([path for path in write if os.path.isdir(path)], scope=False)
    os.chdir(cwd)
    os.execvpe(argv[0], argv, dict(os.environ))


def exec_confined(
    plan: dict[str, Any], argv: list[str], env: dict[str, str], *, init: Callable[[int, dict[str, Any]], NoReturn]
) -> NoReturn:
    """Run a program under the plan: this starts kernelspec kernels.

    Call it in the middle process: a fresh single-threaded fork whose descriptors 0 to 2 are the kernel's. The program
    gets the plan's environment and ``env``, without variables that make it look for its parent.

    Args:
        plan: See ``enter``.
        argv: The program and its arguments, searched on the plan's PATH.
        env: Variables to add to the environment.
        init: Called in the init with the kernel's pid. It must call ``guard_init``, reap, report and exit.

    Raises:
        StepFailed: In the middle process or the init. In the kernel it is written to descriptor 2 and the exit status
            is 126 (127: program not found).
    """
    enter(plan)
    if not plan["namespaces"]:
        hide_from_sandbox(
            plan
        )  # Without namespaces, other sessions see it. With them none does, and the id maps must still be written.
    if os.fork():
        os._exit(0)
    build(plan)
    kernel = os.fork()
    if kernel:
        init(kernel, plan)
    _exec(plan, argv, env)


def _exec(plan: dict[str, Any], argv: list[str], env: dict[str, str]) -> NoReturn:
    try:
        plan["env"] = {**plan["env"], **env}
        # ipykernel would exit immediately: the parent's pid is not valid in this namespace.
        plan["env"].pop("JPY_PARENT_PID", None)
        seal(plan)
        os.execvpe(argv[0], argv, dict(os.environ))
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _data_bytes() -> int:
    with open_file("/proc/self/statm", "rb") as f:
        return int(f.read().split()[5]) * resource.getpagesize()


def _limit(plan: dict[str, Any]) -> None:
    with _step("rlimits"):
        for name, (soft, hard) in plan["rlimits"].items():
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (soft, hard))
        if plan["data_bytes"] is not None:
            # In addition to the pages that a fork of the template has already, or it could not allocate any memory.
            most = plan["data_bytes"] + plan["data_idle_bytes"]
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _reseed() -> None:
    """Seed the random generators: forks of one template must not share numbers. numpy keeps its state over a fork."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
