"""What a kernel host holds to confine its kernels: one object, from probe to clean-up.

``prepare`` before a spawn gives a ``SandboxAllocation``: the plan for the child, the report
for everybody else, and what must be given back. ``release`` after the last
process is gone. A ticket is plain data: a host writes it down with the kernel's
record, and the next host calls ``restore`` with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import Internal
from kernelsvc.linux.nofollow import stat_plain
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.limits import Limits
from kernelsvc.sandbox import quota
from kernelsvc.sandbox.branch_dirs import times
from kernelsvc.sandbox.cgroup import Cgroup, CgroupManager, open_cgroups
from kernelsvc.sandbox.idmap import can_map, make_map, make_owned
from kernelsvc.sandbox.plan import SPARE_TASKS, ConfinementRequest, Policy, confine
from kernelsvc.sandbox.probe import probe
from kernelsvc.sandbox.probe_result import Layer, Probe
from kernelsvc.sandbox.rootfs_paths import RootfsPaths, find_places, is_reachable
from kernelsvc.sandbox.uid_pool import UIDS, UidPool, give, users_of_processes


class SandboxAllocation(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel's confinement.

    Attributes:
        kernel: its id.
        plan: for ``kernelsvc.guest.confine.confine``.
        report: for the session's first event.
        limits: the caps it was made for.
        group: its cgroup, where there is one.
        uid: its user of the host, where it has one.
        directories: what that user is for; who lives in one of them or beneath is the same user.
    """

    kernel: str
    plan: dict[str, Any]
    report: SandboxReport
    limits: Limits
    group: Cgroup | None = None
    uid: int | None = None
    directories: list[str] = []


class SandboxManager:
    """Probe once, then confine each kernel.

    Args:
        policy: how much a session's start depends on confinement.
        runtime_dir: an existing directory of the host's own; its name also tells
            this host's cgroups from another's.
        hidden: directories that no session may see, wherever they lie: the data
            directory, the runtime directory, keys.
        found: a probe made before, or None to make one now (0.1 s).
    """

    def __init__(
        self, *, policy: Policy, runtime_dir: str, hidden: Iterable[str] = (), found: Probe | None = None
    ) -> None:
        self.policy = policy
        self._tag = hashlib.sha256(os.path.realpath(runtime_dir).encode()).hexdigest()[:12]
        self._groups: CgroupManager = open_cgroups(self._tag)
        self.probe = with_cgroups(found or probe(directory=runtime_dir), self._groups)
        hidden = list(hidden)
        self._data = [path for path in hidden if os.path.isdir(path)]
        self._hidden = sorted({os.path.realpath(path) for path in (*hidden, runtime_dir)})
        self._identities = UidPool(taken=users_of_processes() if self.probe.root else ())
        self._root = os.path.join(runtime_dir, "view")
        os.makedirs(self._root, mode=0o755, exist_ok=True)
        self._places: dict[tuple[str, ...], RootfsPaths] = {}
        self._maps: dict[str, int] = {}

    def report(self, limits: Limits) -> SandboxReport:
        """What a session with these limits would get; for ``hello`` and ``/v1/info``.

        Raises:
            SandboxUnavailable: the policy is ``required`` and this machine can't.
        """
        request = ConfinementRequest(
            policy=self.policy,
            limits=limits,
            places=RootfsPaths(links={}, readonly=[], path=""),
            root=self._root,
            workdir="/nonexistent",
            uid=0 if self.probe.root else None,
            quota=any(quota.is_available(path) for path in self._data),
            controllers=frozenset(layer.name.split()[0] for layer in self._groups.layers if layer.ok),
        )
        return confine(request, self.probe).report

    def prepare(
        self,
        kernel: str,
        *,
        workdir: str,
        limits: Limits,
        python: str,
        env: dict[str, str] | None = None,
        prefixes: Sequence[str] = (),
        family: str | None = None,
        share: Sequence[str] = (),
    ) -> SandboxAllocation:
        """Decide and make ready: a user id, the directory's owner, a cgroup with its caps.

        When it raises, what was taken is given back.

        Args:
            kernel: its id; names the cgroup.
            workdir: the session's directory, existing, reached through no link; nothing may run in it now.
            limits: the caps.
            python: the interpreter whose environment is shown (a cold kernel's
                ``argv[0]``).
            env: the environment inside, on top of a small default one.
            prefixes: further directories with the environment's modules.
            family: see ``plan.Request``.
            share: see ``plan.Request``.

        Raises:
            SandboxUnavailable: the policy is ``required`` and this machine can't.
            AtCapacity: no user id is left.
            Internal: Linux refused something; the message says what.
        """
        directory = os.path.realpath(workdir)
        directories = [directory, *([os.path.realpath(family)] if family else [])]
        uid = self._identities.acquire(*directories) if self.probe.root and self.policy != "off" else None
        group: Cgroup | None = None
        try:
            # What it is shown as its own is what is there now: neither a link, nor what may be put there next.
            stat_plain(workdir)
            own = stat_plain(family or workdir)
            group = self._groups.make(kernel, cpu=limits.cpu_cores is not None)
            places = self._find_places(python, tuple(prefixes))
            request = ConfinementRequest(
                policy=self.policy,
                limits=limits,
                places=places,
                root=self._root,
                workdir=directory,
                family=None if family is None else os.path.realpath(family),
                branched=0 if family is None else times(Path(directory)),
                share=list(share),
                identity=(own.st_dev, own.st_ino),
                hidden=self._hidden,
                uid=uid,
                reachable=uid is None or is_reachable([workdir, *(source for source, _ in places.readonly)]),
                cgroup=group.join_files if group else [],
                controllers=group.controllers if group else frozenset(),
                env=env or {},
            )
            request = msgspec.structs.replace(request, quota=_limit_disk(request))
            idmap = self._map_owner(request)
            if idmap is not None:
                # The child opens it by that name: descriptors of ours are closed before it reads its plan.
                request = msgspec.structs.replace(request, idmap=f"/proc/{os.getpid()}/fd/{idmap}")
                self._maps[kernel] = idmap
            confinement = confine(request, self.probe)
            self._make_ready(group, limits, request, confinement.plan)
        except BaseException as error:
            self._give_back(group, uid)
            self._drop_map(kernel)
            if isinstance(error, OSError | ValueError):
                raise Internal(f"Confinement could not be prepared: {error}") from error
            raise
        return SandboxAllocation(
            kernel=kernel,
            plan=confinement.plan,
            report=confinement.report,
            limits=limits,
            group=group,
            uid=uid,
            directories=directories,
        )

    def _make_ready(
        self, group: Cgroup | None, limits: Limits, request: ConfinementRequest, plan: dict[str, Any]
    ) -> None:
        if group is not None:
            tasks = None if limits.processes is None else limits.processes + SPARE_TASKS
            group.limit(memory_bytes=limits.memory_bytes, tasks=tasks)
        if request.family is not None:  # for branches; the plan names it
            make_owned(f"{request.workdir}.d", os.stat(request.workdir))
        if plan["become"] is not None:
            uid = plan["become"]["uid"]
            # Others of the same user may work in a directory that is this user's already.
            theirs = request.idmap is not None or os.stat(request.workdir).st_uid == uid
            own = [] if theirs else [request.workdir]
            for path in (*own, *request.share):
                give(path, uid)

    def _map_owner(self, request: ConfinementRequest) -> int | None:
        """For a directory that is neither root's nor a session's: the map that makes it the session's inside."""
        if request.uid is None or not self.probe.works("filesystem"):
            return None
        owner = os.stat(request.workdir)
        if owner.st_uid == 0 or owner.st_uid in UIDS:
            return None
        found = make_map((owner.st_uid, owner.st_gid), (request.uid, request.uid))
        if can_map(request.workdir, found):
            return found
        os.close(found)
        return None

    def _drop_map(self, kernel: str) -> None:
        found = self._maps.pop(kernel, None)
        if found is not None:
            os.close(found)

    def branch_cgroup(self, name: str, limits: Limits) -> Cgroup | None:
        """A cgroup for a branch, beside its family's, with its caps, or None where this machine has none for us.

        Args:
            name: unique among this host's.
            limits: the caps.

        Raises:
            Internal: Linux refused something; the message says what.
        """
        group: Cgroup | None = None
        try:
            group = self._groups.make(name, cpu=limits.cpu_cores is not None)
            if group is not None:
                tasks = None if limits.processes is None else limits.processes + SPARE_TASKS
                group.limit(memory_bytes=limits.memory_bytes, tasks=tasks)
                group.limit_cpu(limits.cpu_cores)
        except OSError as error:
            self._give_back(group, None)
            raise Internal(f"The branch's cgroup could not be made: {error}") from error
        return group

    def prewait_rcu(self) -> None:
        """A branch is about to be made: what moving it waits for can be waited for now. Blocks; for a thread."""
        self._groups.prewait_rcu()

    def ready(self, ticket: SandboxAllocation) -> None:
        """The kernel answers: from now on its CPU share holds (a tight one would slow the start).

        Raises:
            OSError: Linux refused.
        """
        self._drop_map(ticket.kernel)
        if ticket.group is not None:
            ticket.group.limit_cpu(ticket.limits.cpu_cores)

    def restore(self, ticket: SandboxAllocation) -> None:
        """Take over a kernel that an earlier host started."""
        if ticket.uid is not None:
            self._identities.claim(ticket.uid, *ticket.directories)

    def release(self, ticket: SandboxAllocation) -> bool:
        """Give back what the ticket holds, once its processes are gone.

        Returns:
            False while Linux still counts a process in the cgroup: call again shortly.
        """
        self._drop_map(ticket.kernel)
        return self._give_back(ticket.group, ticket.uid)

    def _give_back(self, group: Cgroup | None, uid: int | None) -> bool:
        if group is not None:
            if not group.remove():
                return False
            self._groups.trim()
        if uid is not None:
            self._identities.release(uid)
        return True

    def sweep(self, live: Iterable[str]) -> list[str]:
        """After a crash: kill and remove this host's cgroups of kernels that are not ``live``.

        Returns:
            The names that were found.
        """
        keep, found = set(live), []
        for group in self._groups.leftovers():
            if group.name not in keep:
                group.kill()
                group.remove()
                found.append(group.name)
        self._groups.trim()
        self._groups.clear_abandoned()
        return found

    def close(self) -> None:
        """Remove this host's own cgroup directories, if no session is left in them."""
        self._groups.close()

    def _find_places(self, python: str, prefixes: tuple[str, ...]) -> RootfsPaths:
        key = (python, *prefixes)
        if key not in self._places:
            self._places[key] = find_places(python, prefixes=prefixes)
        return self._places[key]


def _limit_disk(request: ConfinementRequest) -> bool:
    """Set the quota of a family that begins, where there are quotas; whether it is held so.

    A session that shares a directory that has one may only have less: the first one's stands.
    """
    directory = request.family or request.workdir
    most = request.limits.disk_bytes
    if request.policy == "off" or most is None or not quota.is_available(directory):
        return False
    quota.limit(directory, most)
    return True


def with_cgroups(found: Probe, groups: CgroupManager) -> Probe:
    """The probe's verdicts with those on cgroups."""
    return msgspec.structs.replace(found, layers=found.layers | {layer.name: layer for layer in groups.layers})


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What ``kernelsvc doctor`` finds.

    Attributes:
        report: what a session would get here and now, as its first event would say it.
        layers: every layer with verdict, reason and fix.
    """

    report: SandboxReport
    layers: list[Layer]


def examine(limits: Limits, *, policy: Policy = "best-effort") -> Examination:
    """Try every layer as whoever runs this; changes nothing.

    Args:
        limits: the caps that are asked for.
        policy: ``required`` finds the same as ``best-effort``: it is reported, not refused.
    """
    groups = open_cgroups("doctor", dry=True)
    found = with_cgroups(probe(), groups)
    request = ConfinementRequest(
        policy="best-effort" if policy == "required" else policy,
        limits=limits,
        places=RootfsPaths(links={}, readonly=[], path=""),
        root="",
        workdir="/nonexistent",
        uid=0 if found.root else None,
        controllers=frozenset(layer.name.split()[0] for layer in groups.layers if layer.ok),
    )
    report = msgspec.structs.replace(confine(request, found).report, policy=policy)
    return Examination(report=report, layers=list(found.layers.values()))
