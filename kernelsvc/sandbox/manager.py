"""Allocation and release of the sandboxes of a kernel host: one object, from probe to clean-up.

``prepare`` before a spawn returns a ``SandboxAllocation``: the plan for the child, the report for clients and the
resources to release. ``release`` frees them after the last process has ended. An allocation is plain data: a host
writes it to disk with the container's record, and the next host passes it to ``restore``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import Internal, MountUnavailable, SandboxUnavailable
from kernelsvc.guest.confine.neutral_paths import TOP
from kernelsvc.linux.nofollow import stat_directory
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.limits import Limits
from kernelsvc.model.network.trust import CERTIFICATES_DIR
from kernelsvc.model.storage.mounts import Bind, why_unsafe
from kernelsvc.sandbox import quota
from kernelsvc.sandbox.branch_dirs import branch_count
from kernelsvc.sandbox.cgroup import Cgroup, CgroupManager, open_cgroups
from kernelsvc.sandbox.idmap import can_map, make_map, make_owned
from kernelsvc.sandbox.own_inodes import mount_of, mount_points, overlay_dirs, with_neutral_paths
from kernelsvc.sandbox.plan import OWN_INODES, SPARE_TASKS, ConfinementRequest, Policy, confine
from kernelsvc.sandbox.probe import OVERLAYS_TRIED, probe, try_overlays
from kernelsvc.sandbox.probe_result import Layer, Probe
from kernelsvc.sandbox.rootfs_paths import (
    RootfsPaths,
    find_paths,
    is_reachable,
    paths_inside,
    private_files,
    read_network_files,
)
from kernelsvc.sandbox.uid_pool import UIDS, BlockLocks, UidPool, give

#: Permissions that let every user list and enter a directory.
_READ_FOR_ALL = stat.S_IROTH | stat.S_IXOTH


class SandboxAllocation(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel's sandbox.

    Attributes:
        kernel: id of the kernel.
        plan: for ``kernelsvc.guest.confine.confine``.
        report: for the session's first event.
        limits: the session's limits.
        group: its cgroup, if it has one.
        uid: its user of the host, if it has one.
        directories: directories of that user. Sessions in one of them or beneath have the same user.
    """

    kernel: str
    plan: dict[str, Any]
    report: SandboxReport
    limits: Limits
    group: Cgroup | None = None
    uid: int | None = None
    directories: list[str] = []


class SandboxManager:
    """Probes the machine once, then prepares and releases sandboxes.

    Args:
        policy: whether a session may start without confinement.
        runtime_dir: an existing directory of this host. Its path identifies this host's cgroups.
        hidden: directories and files that no session may see: data, sockets, keys, the configuration.
        wheelhouse: directory of wheels for pip, or "".
        found: the result of an earlier probe, or None to probe now (0.1 s).
    """

    def __init__(
        self,
        *,
        policy: Policy,
        runtime_dir: str,
        hidden: Iterable[str] = (),
        wheelhouse: str = "",
        found: Probe | None = None,
    ) -> None:
        self.policy = policy
        self._wheelhouse = wheelhouse
        self._tag = hashlib.sha256(os.path.realpath(runtime_dir).encode()).hexdigest()[:12]
        self._cgroups: CgroupManager = open_cgroups(self._tag)
        self.probe = with_cgroups(found or probe(directory=runtime_dir), self._cgroups)
        hidden = list(hidden)
        self._quota_dirs = [path for path in hidden if os.path.isdir(path)]
        self._hidden = sorted({os.path.realpath(path) for path in (*hidden, runtime_dir)})
        self._uid_locks = BlockLocks()
        self._identities = UidPool(locks=self._uid_locks)
        self._root = os.path.join(runtime_dir, "view")
        self._certificates_dir = os.path.join(runtime_dir, CERTIFICATES_DIR)
        os.makedirs(self._root, mode=0o755, exist_ok=True)
        self._paths: dict[tuple[str, ...], tuple[RootfsPaths, bool]] = {}
        self._maps: dict[str, int] = {}

    def report(self, limits: Limits) -> SandboxReport:
        """Return the report of a session with these limits, for ``hello`` and ``/v1/info``.

        Raises:
            SandboxUnavailable: the policy is ``required`` and this machine can't confine.
        """
        request = ConfinementRequest(
            policy=self.policy,
            limits=limits,
            paths=RootfsPaths(links={}, readonly=[], path=""),
            root=self._root,
            workdir="/nonexistent",
            uid=0 if self.probe.root else None,
            quota=any(quota.is_available(path) for path in self._quota_dirs),
            controllers=frozenset(layer.name.split()[0] for layer in self._cgroups.layers if layer.ok),
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
        moves: Mapping[str, str] | None = None,
        group_dir: str | None = None,
        share: Sequence[str] = (),
        binds: Sequence[Bind] = (),
    ) -> SandboxAllocation:
        """Choose the layers, and allocate a user id and a cgroup with its limits. Change the owner of the directory.

        If it raises, it has released everything.

        Args:
            kernel: id of the kernel, and name of the cgroup.
            workdir: the session's existing directory, reached through no link. No process may run in it now.
            limits: the session's limits.
            python: the interpreter whose environment is visible (``argv[0]`` of a kernelspec kernel).
            env: the environment variables inside, in addition to a small default environment.
            prefixes: more directories with the environment's modules.
            moves: see ``rootfs_paths.find_paths``.
            group_dir: see ``plan.ConfinementRequest``.
            share: see ``plan.ConfinementRequest``.
            binds: see ``plan.ConfinementRequest``.

        Raises:
            SandboxUnavailable: the policy is ``required`` and this machine can't confine.
            AtCapacity: no user id is free.
            MountUnavailable: a directory of ``binds`` can't be shown.
            Internal: Linux refused a step, which the message names.
        """
        directory = os.path.realpath(workdir)
        shared = [bind.source for bind in binds if bind.writable]
        directories = [directory, *([os.path.realpath(group_dir)] if group_dir else []), *map(os.path.realpath, shared)]
        uid = self._acquire_uid(directories, shared) if self.probe.root and self.policy != "off" else None
        group: Cgroup | None = None
        try:
            # The plan names the directory by device and inode, so a link or a replacement is not mounted later.
            stat_directory(workdir)
            own = stat_directory(group_dir or workdir)
            group = self._cgroups.make(kernel, cpu=limits.cpu_cores is not None)
            paths, reachable = self._find_paths(python, tuple(prefixes), moves)
            request = ConfinementRequest(
                policy=self.policy,
                limits=limits,
                paths=paths,
                root=self._root,
                workdir=directory,
                group_dir=None if group_dir is None else os.path.realpath(group_dir),
                branch_depth=0 if group_dir is None else branch_count(Path(directory)),
                share=list(share),
                wheelhouse=self._wheelhouse if os.path.isdir(self._wheelhouse) else "",
                binds=[self._checked(bind, user=uid) for bind in binds],
                identity=(own.st_dev, own.st_ino),
                uid=uid,
                reachable=uid is None or (reachable and is_reachable([workdir])),
                cgroup=group.join_files if group else [],
                controllers=group.controllers if group else frozenset(),
                env=env or {},
                certificates=self._certificates(limits),
                network_files=read_network_files() if limits.network == "host" else {},
            )
            request = msgspec.structs.replace(request, quota=_limit_disk(request))
            idmap = self._make_idmap(request)
            if idmap is not None:
                # The child opens it by this path: it closes inherited descriptors before it reads its plan.
                request = msgspec.structs.replace(request, idmap=f"/proc/{os.getpid()}/fd/{idmap}")
                self._maps[kernel] = idmap
                owner = os.stat(directory).st_uid
                mapped = [
                    bind.source for bind in request.binds if bind.writable and os.stat(bind.source).st_uid == owner
                ]
                request = msgspec.structs.replace(request, mapped=mapped)
            confinement = confine(request, self.probe)
            _require_egress(confinement.report, limits)
            self._apply_limits(group, limits, request, confinement.plan)
        except BaseException as error:
            self._release_resources(group, uid)
            self._close_map(kernel)
            if isinstance(error, OSError | ValueError):
                raise Internal(f"The sandbox can't be prepared: {error}. Run 'kernelsvc doctor'.") from error
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

    def _certificates(self, limits: Limits) -> str:
        """Return the directory with the proxy's certificate, or "" if the session's rules need no request to be read.

        A proxy that starts later, as for a warm kernel, writes the certificate into it.
        """
        if isinstance(limits.network, str) or not limits.network.reads_requests():
            return ""
        os.makedirs(self._certificates_dir, mode=0o755, exist_ok=True)
        return self._certificates_dir

    def _acquire_uid(self, directories: Sequence[str], shared: Sequence[str]) -> int:
        """Return a session's user id. Sessions that share a directory for writing have the same."""
        owners = [os.stat(path).st_uid for path in shared if os.path.isdir(path)]
        return self._identities.acquire(*directories, preferred=owners[0] if owners and owners[0] in UIDS else None)

    def _checked(self, bind: Bind, *, user: int | None) -> Bind:
        """Return a bind with its source's path without links.

        Raises:
            MountUnavailable: it is not there, holds files that no session may see, or the session could not read it.
        """
        source = os.path.realpath(bind.source)
        try:
            about = os.stat(source)
        except OSError as error:
            raise MountUnavailable(f"The mount {bind.target} is not there: {bind.source}: {error.strerror}.") from None
        if not stat.S_ISDIR(about.st_mode):
            raise MountUnavailable(f"The mount {bind.target} can't be shown: {bind.source} is not a directory.")
        if not bind.writable and (why := why_unsafe(source, self._hidden)) is not None:
            raise MountUnavailable(f"The mount {bind.target} can't be shown: {why}.")
        if user is not None and not bind.writable and about.st_mode & _READ_FOR_ALL != _READ_FOR_ALL:
            raise MountUnavailable(
                f"Sessions have users of their own, who can't read the mount {bind.target}. Run 'chmod -R o+rX' on "
                f"{bind.source}."
            )
        return msgspec.structs.replace(bind, source=source)

    def _apply_limits(
        self, group: Cgroup | None, limits: Limits, request: ConfinementRequest, plan: dict[str, Any]
    ) -> None:
        if group is not None:
            tasks = None if limits.processes is None else limits.processes + SPARE_TASKS
            group.limit(memory_bytes=limits.memory_bytes, tasks=tasks)
        if request.group_dir is not None:  # for branches, whose path the plan grants
            make_owned(f"{request.workdir}.d", os.stat(request.workdir))
        if plan["become"] is not None:
            uid = plan["become"]["uid"]
            # If the directory belongs to the user already, other sessions of the user may be running in it.
            already_owned = request.idmap is not None or os.stat(request.workdir).st_uid == uid
            own = [] if already_owned else [request.workdir]
            shared = [bind.source for bind in request.binds if bind.writable and bind.source not in request.mapped]
            # A workspace keeps its user from session to session if it can, since a large tree takes long to walk.
            for path in (*own, *request.share, *(path for path in shared if os.stat(path).st_uid != uid)):
                give(path, uid)

    def _make_idmap(self, request: ConfinementRequest) -> int | None:
        """Make the id map of a directory that belongs neither to root nor to a session's user, else None."""
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

    def _close_map(self, kernel: str) -> None:
        found = self._maps.pop(kernel, None)
        if found is not None:
            os.close(found)

    def branch_cgroup(self, name: str, limits: Limits) -> Cgroup | None:
        """Make a cgroup with limits for a branch. Return None if this machine offers none.

        Args:
            name: unique for this host.
            limits: the branch's limits.

        Raises:
            Internal: Linux refused a step, which the message names.
        """
        group: Cgroup | None = None
        try:
            group = self._cgroups.make(name, cpu=limits.cpu_cores is not None)
            if group is not None:
                tasks = None if limits.processes is None else limits.processes + SPARE_TASKS
                group.limit(memory_bytes=limits.memory_bytes, tasks=tasks)
                group.limit_cpu(limits.cpu_cores)
        except OSError as error:
            self._release_resources(group, None)
            raise Internal(f"Linux refused the branch's cgroup: {error}. Run 'kernelsvc doctor'.") from error
        return group

    def prewait_rcu(self) -> None:
        """See ``CgroupManager.prewait_rcu``. Blocks: call it in a thread, before a branch is forked."""
        self._cgroups.prewait_rcu()

    def ready(self, allocation: SandboxAllocation) -> None:
        """Limit the CPU share of a kernel that is ready. A small share would slow its start.

        Raises:
            OSError: Linux refused.
        """
        self._close_map(allocation.kernel)
        if allocation.group is not None:
            allocation.group.limit_cpu(allocation.limits.cpu_cores)

    def restore(self, allocation: SandboxAllocation) -> None:
        """Reserve the user id of a kernel that an earlier host started."""
        if allocation.uid is not None:
            self._identities.claim(allocation.uid, *allocation.directories)

    def release(self, allocation: SandboxAllocation) -> bool:
        """Release the resources of an allocation, after its processes have ended.

        Returns:
            False while Linux still counts a process in the cgroup. Call it again shortly.
        """
        self._close_map(allocation.kernel)
        return self._release_resources(allocation.group, allocation.uid)

    def _release_resources(self, group: Cgroup | None, uid: int | None) -> bool:
        if group is not None:
            if not group.remove():
                return False
            self._cgroups.trim()
        if uid is not None:
            self._identities.release(uid)
        return True

    def sweep(self, live: Iterable[str]) -> list[str]:
        """Kill and remove this host's cgroups that belong to no live kernel, after a crash.

        Args:
            live: names of the groups to keep.

        Returns:
            The names of the removed groups.
        """
        keep, found = set(live), []
        for group in self._cgroups.leftovers():
            if group.name not in keep:
                group.kill()
                group.remove()
                found.append(group.name)
        self._cgroups.trim()
        self._cgroups.clear_abandoned()
        return found

    def close(self) -> None:
        """Remove this host's cgroup directories, if they have no session, and release its user ids for other hosts."""
        self._cgroups.close()
        self._uid_locks.close()

    def _find_paths(
        self, python: str, prefixes: tuple[str, ...], moves: Mapping[str, str] | None
    ) -> tuple[RootfsPaths, bool]:
        """Return the paths of an environment, and whether every user may walk to all of them. Looks only once."""
        key = (python, *prefixes, *(moves or ()))
        if key not in self._paths:
            found = find_paths(python, prefixes=prefixes, moves=moves)
            found = msgspec.structs.replace(
                found,
                overlays=self._find_overlays((source for source, _ in found.readonly), moved=bool(moves)),
                hidden=paths_inside(self._hidden, found.readonly),
            )
            self._paths[key] = found, is_reachable(source for source, _ in found.readonly)
        return self._paths[key]

    def _find_overlays(self, sources: Iterable[str], *, moved: bool) -> dict[str, tuple[str, str]]:
        """Return the overlays that work here, for ``RootfsPaths``. ``moved``: the fork server has neutral paths."""
        if not self.probe.works(OWN_INODES):
            return {}
        real = {source: os.path.realpath(source) for source in sources}
        mounts = mount_points(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))
        if moved and not self.probe.root:
            mounts = with_neutral_paths(mounts, os.listdir(TOP))
        files = {path for path in real.values() if not os.path.isdir(path)}
        chosen = overlay_dirs(real.values(), mounts, locked=not self.probe.root, files=files)
        # A filesystem refuses or allows overlays as a whole. On most machines the probe has tried all that are needed.
        tried = {mount_of(path, mounts) for path in OVERLAYS_TRIED}
        others = sorted({path for path in chosen.values() if mount_of(path, mounts) not in tried})
        refused = try_overlays(others, directory=self._root) if others else {}
        return {
            source: (chosen[path], os.path.relpath(path, chosen[path]))
            for source, path in real.items()
            if path in chosen and not refused.get(chosen[path])
        }


def _require_egress(report: SandboxReport, limits: Limits) -> None:
    """Refuse a session whose network rules would not hold, whatever the policy.

    Raises:
        SandboxUnavailable: this machine can't enforce them.
    """
    if not isinstance(limits.network, str) and "egress" not in report.enforced:
        why = next((lack.why for lack in report.not_enforced if lack.layer == "egress"), "the sandbox is off")
        raise SandboxUnavailable(
            f"This machine can't enforce rules for the network ({why}). "
            "Run 'kernelsvc doctor', or ask for network none."
        )


def _limit_disk(request: ConfinementRequest) -> bool:
    """Set the quota of a session's directory, if the filesystem has quotas. Return whether it is enforced.

    A sidecar session shares the directory. Its limit may only be lower, so the first session's quota stays.
    """
    directory = request.group_dir or request.workdir
    maximum, files = request.limits.disk_bytes, request.limits.files
    if request.policy == "off" or (maximum is None and files is None) or not quota.is_available(directory):
        return False
    quota.limit(directory, maximum, files)
    return True


def with_cgroups(found: Probe, groups: CgroupManager) -> Probe:
    """Return the probe's verdicts and those on cgroups."""
    return msgspec.structs.replace(found, layers=found.layers | {layer.name: layer for layer in groups.layers})


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """The findings of ``kernelsvc doctor``.

    Attributes:
        report: the report that a session would get here.
        layers: every layer with verdict, reason and fix.
        warnings: properties of this machine that weaken confinement and that no layer can change.
    """

    report: SandboxReport
    layers: list[Layer]
    warnings: list[str] = []


def examine(limits: Limits, *, policy: Policy = "best-effort") -> Examination:
    """Try every layer as the current user. Changes nothing.

    Args:
        limits: the limits to report on.
        policy: ``required`` gives the same verdicts as ``best-effort``. A missing layer is reported.
    """
    groups = open_cgroups("doctor", dry=True)
    found = with_cgroups(probe(), groups)
    request = ConfinementRequest(
        policy="best-effort" if policy == "required" else policy,
        limits=limits,
        paths=RootfsPaths(links={}, readonly=[], path=""),
        root="",
        workdir="/nonexistent",
        uid=0 if found.root else None,
        controllers=frozenset(layer.name.split()[0] for layer in groups.layers if layer.ok),
    )
    report = msgspec.structs.replace(confine(request, found).report, policy=policy)
    # As root, sessions have users of their own, who can't read private files of this one.
    private = [] if found.root else private_files(source for source, _ in find_paths().readonly)
    warnings = machine_warnings(_core_pattern(), private)
    return Examination(report=report, layers=list(found.layers.values()), warnings=warnings)


def _core_pattern() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/core_pattern").read_text(encoding="utf-8").strip()
    return ""


def machine_warnings(core_pattern: str, private: Sequence[str]) -> list[str]:
    """Return what weakens confinement on this machine and no layer can change, in words.

    Args:
        core_pattern: how Linux saves the memory of a crashed process.
        private: files for this user alone that lie in directories that sessions see.
    """
    warnings = []
    if core_pattern.startswith(("|", "@")):
        # core(5): RLIMIT_CORE does not apply to a pattern that begins with a pipe, except for the value 1. Nor does it
        # apply to a socket (Linux 6.16).
        warnings.append(
            f"core_pattern is {core_pattern.split()[0]}: a program of the machine, usually as root, gets the memory of "
            "each process of a session that crashes. Run 'sudo sysctl -w kernel.core_pattern=core'."
        )
    if private:
        more = f" and {len(private) - 1} more" if len(private) > 1 else ""
        warnings.append(
            f"{private[0]}{more} can be read by sessions, because sessions see that directory and have the rights of "
            "this user to files. Move it elsewhere if it is a secret."
        )
    return warnings
