"""Apply a confinement plan, in the forked child, before the first byte of user code.

Theory of operation. ``kernelsvc.sandbox.plan`` decides, here it is done. A plan
is a JSON object; each layer that it lists is applied or ``StepFailed`` is raised
with the step's name, and the caller then must not go on. Nothing is skipped in
silence, nothing is decided here.

A program beside the kernel comes by another way: ``join``, a fork, ``exec_joined``.

The process tree, and who calls what::

    template ── fork ──> middle     enter(plan)     cgroup, session, namespaces, id maps
                           └─ fork ──> init         build(plan)     private root, /proc, lo, user, capabilities
                                         ├─ fork ──> kernel         seal(plan)   rlimits, Landlock, environment, seccomp
                                         └─ ...      guard_init(plan)   after that fork: closes itself to the kernel

A pid namespace takes hold of children only, which is why the middle exists; it
exits when it has forked the init. The init is pid 1 of the namespace, is trusted,
and the kernel is never pid 1. ``enter``, ``build`` and ``seal`` each need a
process with a single thread. ``seal`` comes last: after it no step of this
module works any more, and that is the point; ``restrict_writes`` alone still does,
because Landlock can always be narrowed.

Rules that are easy to break: uid and gid are read before ``unshare``; the cgroup
is joined before the view of it is lost; the bounding set goes before the user,
the user before ``no_new_privs``, seccomp last of all.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from kernelsvc.guest.confine import linux as lx
from kernelsvc.guest.confine.rootfs import build_view

#: Of the plan's format; a plan of another version is refused.
PLAN_VERSION = 1


class StepFailed(Exception):
    """A layer of confinement could not be applied; the session must not start.

    Attributes:
        step: the layer's name as in the sandbox report.
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
    """The middle process: own session, cgroup, namespaces, id maps.

    The next ``fork`` makes the init.

    Raises:
        StepFailed: a layer could not be applied.
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
    uid, gid = os.getuid(), os.getgid()  # afterwards both are the overflow id
    with _step("namespaces"):
        lx.unshare(plan["namespaces"])
    if "user" in plan["namespaces"]:
        with _step("user namespace"):
            inside = plan["inside"]
            lx.write_file("/proc/self/setgroups", "deny")
            lx.write_file("/proc/self/uid_map", f"{inside['uid']} {uid} 1")
            lx.write_file("/proc/self/gid_map", f"{inside['gid']} {gid} 1")


def build(plan: dict[str, Any]) -> None:
    """The init: private root, loopback, host name, user, capabilities, no_new_privs.

    Afterwards the working directory is ``plan["home"]``. The next ``fork`` makes
    the kernel; only then call ``guard_init``.

    Raises:
        StepFailed: a layer could not be applied.
    """
    if plan["data_bytes"] is not None:
        with _step("rlimits"):
            # Read while /proc is surely there: the new root may have none.
            plan["data_idle_bytes"] = _data_bytes()
    if "pid" not in plan["namespaces"]:
        with _step("subreaper"):
            lx.prctl(lx.PR_SET_CHILD_SUBREAPER, 1)
    if plan["view"] is not None:
        with _step("filesystem"):
            build_view(plan["view"])
    if "net" in plan["namespaces"]:
        with _step("loopback"):
            lx.raise_loopback()
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
            lx.prctl(lx.PR_SET_NO_NEW_PRIVS, 1)


def guard_init(plan: dict[str, Any]) -> None:
    """The init, after it has forked the kernel: close itself to it.

    Not dumpable: ``/proc/1/mem``, ``fd`` and ``environ`` then belong to root and
    ptrace is refused. Its own filter has no exec, no new socket, no new file.
    Import and prepare everything before.

    Raises:
        StepFailed: a layer could not be applied.
    """
    if not plan["guard_init"]:
        return
    with _step("init guard"):
        lx.prctl(lx.PR_SET_DUMPABLE, 0)
        if plan["seccomp"] is not None:
            lx.install_filter(bytes.fromhex(plan["seccomp"]["init"]))


def seal(plan: dict[str, Any]) -> None:
    """The kernel, last before user code: session, rlimits, Landlock, environment, seccomp.

    Descriptors are the caller's matter (``linux.close_others``).

    Raises:
        StepFailed: a layer could not be applied.
    """
    with _step("session"):
        if os.getsid(0) != os.getpid():
            os.setsid()
    if "pid" not in plan["namespaces"]:
        with _step("parent death signal"):
            # Nothing else ends the kernel with its init where there is no pid namespace.
            lx.prctl(lx.PR_SET_PDEATHSIG, 9)
    if plan["oom_score_adj"] is not None:
        with _step("oom score"):
            # The kernel goes before its init and its checkpoints.
            lx.write_file("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
    _limit(plan)
    if plan["landlock"] is not None:
        with _step("landlock"):
            lx.landlock([(p, k) for p, k in plan["landlock"]["grants"]], scope=plan["landlock"]["scope"])
    with _step("environment"):
        os.environ.clear()
        os.environ.update(plan["env"])
        # The directory for temporary files was looked up in another filesystem view.
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            tempfile.tempdir = None
    _reseed()
    if plan["seccomp"] is not None:
        with _step("seccomp"):
            lx.install_filter(bytes.fromhex(plan["seccomp"]["kernel"]))


def restrict_writes(write: list[str], *, scope: bool) -> None:
    """A branch or its parent: keep the right to write beneath these directories only.

    Adds a Landlock layer on top of the session's; reading stays as it was. It also
    keeps this process out of the memory of every relative that does not descend
    from it (``/proc/PID/mem``), since Linux lets a process into another one only from
    the same layers or fewer. At most 16 layers fit on one another.

    Args:
        write: directories as seen inside.
        scope: also keep its signals from every process that does not descend from it
            from now on, where the kernel can.

    Raises:
        StepFailed: Landlock refused.
    """
    with _step("landlock"):
        grants = [("/", "read"), *((path, "device") for path in ("/dev", "/proc") if os.path.isdir(path))]
        lx.landlock(grants + [(path, "write") for path in write], scope=scope)


def lower_data(most: int) -> None:
    """A branch: at most so much more than its parent had, and no more than its parent may have (``RLIMIT_DATA``)."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + most
    if hard == resource.RLIM_INFINITY or wanted < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


def program_plan(plan: dict[str, Any], secret: Iterable[str]) -> dict[str, Any]:
    """What it takes to ``join`` a sandbox that is there: no more than a host may write down.

    Args:
        plan: the sandbox's.
        secret: variables of the environment that are its session's own, and left out.
    """
    left = {name: value for name, value in plan.items() if name not in ("view", "cgroup", "seccomp")}
    filters = plan["seccomp"]
    withheld = set(secret)
    return left | {
        "seccomp": None if filters is None else {"kernel": filters["kernel"]},
        "env": {name: value for name, value in plan["env"].items() if name not in withheld},
    }


def hide_from_sandbox(plan: dict[str, Any]) -> None:
    """A fork of the kernel host that is to become a program: nobody may look into its copy of the host's memory.

    Before it can be seen by any session. Not dumpable, its ``/proc`` directory belongs
    to root; so what is written there is written now. ``exec`` ends it: a program is
    dumpable again, and its memory its own.

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
    """Enter the cgroup and the namespaces of a sandbox that is there; a child forked next is in all of them.

    For a fresh fork with a single thread. It keeps its rights: what may be run here is ``exec_joined`` alone.

    Args:
        plan: the sandbox's, see ``program_plan``.
        cgroup: files that make the writer a member.
        kernel: a pidfd of the sandbox's kernel; not of the init, into which Linux lets nobody.

    Raises:
        StepFailed: a layer could not be entered.
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
    """Run a program with no more rights than the sandbox's kernel has. In the child of who has called ``join``.

    Args:
        plan: the sandbox's, see ``program_plan``.
        argv: the program and its arguments; looked up on the plan's PATH.
        env: additions to the environment.
        cwd: the directory it starts in.
        write: the only directories that it may write to, of those that the sandbox's sessions share; None for all.

    Raises:
        StepFailed: a layer could not be applied.
        OSError: there is no such directory or program.
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
    """Run a program under the plan: what a cold kernel is started with.

    Called in the middle process (a fresh fork with a single thread, descriptors
    0 to 2 already those of the kernel). The program gets ``env`` on top of the
    plan's environment, less what would make it look for its starter.

    Args:
        plan: as for ``enter``.
        argv: the program and its arguments; looked up on the plan's PATH.
        env: additions to the environment.
        init: called in the init with the kernel's pid, after which it must call
            ``guard_init``, reap, report and exit.

    Raises:
        StepFailed: in the middle or the init; in the kernel it is written to
            descriptor 2 and the exit status is 126 (127: program not found).
    """
    enter(plan)
    if not plan["namespaces"]:
        hide_from_sandbox(
            plan
        )  # other sessions see it; with namespaces nobody does, and maps of ids must still be written
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
        # ipykernel would exit at once: its starter's pid means nothing in this namespace.
        plan["env"].pop("JPY_PARENT_PID", None)
        seal(plan)
        os.execvpe(argv[0], argv, dict(os.environ))
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _data_bytes() -> int:
    with open("/proc/self/statm", "rb") as f:
        return int(f.read().split()[5]) * resource.getpagesize()


def _limit(plan: dict[str, Any]) -> None:
    with _step("rlimits"):
        for name, (soft, hard) in plan["rlimits"].items():
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (soft, hard))
        if plan["data_bytes"] is not None:
            # On top of what a fork of the template has mapped already, or it could allocate nothing.
            most = plan["data_bytes"] + plan["data_idle_bytes"]
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _reseed() -> None:
    """Siblings of one template must not draw the same numbers; numpy keeps its state over a fork."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
