"""Policy, probe, limits in; plan and report out."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest, SandboxUnavailable
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.storage.mounts import Bind
from kernelsvc.sandbox.plan import DATA, SPARE_TASKS, Confinement, ConfinementRequest, confine
from kernelsvc.sandbox.probe_result import Layer, Probe
from kernelsvc.sandbox.rootfs_paths import RootfsPaths

LAYERS = [
    *("user", "user namespace", "task rlimit", "mount namespace", "pid namespace", "ipc namespace", "uts namespace"),
    *("cgroup namespace", "net namespace", "filesystem", "proc", "capabilities", "no_new_privs", "landlock", "seccomp"),
    "own inodes",
    "egress",
]
ALL_CONTROLLERS = frozenset({"memory", "pids", "cpu"})


def probe(*, root: bool = False, without: tuple[str, ...] = ()) -> Probe:
    layers = {name: Layer(name=name, ok=name not in without, why=f"no {name} here") for name in LAYERS}
    return Probe(root=root, arch="x86_64", release="6.1", layers=layers, landlock_abi=6)


def request(**changes: object) -> ConfinementRequest:
    base = ConfinementRequest(
        policy="best-effort",
        limits=Limits(),
        paths=RootfsPaths(
            links={"/bin": "usr/bin"}, readonly=[("/usr", "/usr")], path="/usr/bin", overlays={"/usr": ("/", "usr")}
        ),
        root="/run/view",
        workdir="/data/sessions/s/files",
        uid=70_001,
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize("bound", ["/mnt", "/mnt/data", "/mnt/data/venv"])
def test_the_link_for_data_is_left_out_if_a_bind_would_follow_it(bound: str) -> None:
    places = RootfsPaths(links={}, readonly=[(bound, bound)], path="/usr/bin")
    assert DATA not in confine(request(paths=places), probe()).plan["view"]["links"]
    assert confine(request(), probe()).plan["view"]["links"][DATA] == "/home/user"


@pytest.mark.parametrize("root", [True, False])
def test_a_machine_with_everything_confines_fully(root: bool) -> None:
    made = confine(request(policy="required", controllers=ALL_CONTROLLERS), probe(root=root))
    assert made.report.isolation == "full"
    assert made.report.not_enforced == []
    assert ("user" in made.report.enforced) is root
    assert ("user" in made.plan["namespaces"]) is not root
    assert made.plan["become"] == ({"uid": 70_001, "gid": 70_001} if root else None)
    assert made.plan["home"] == "/home/user"
    assert made.report.limits["memory_bytes"] == "hard"
    assert made.report.limits["network"] == "hard"
    json.dumps(made.plan)


def test_inodes_are_the_sessions_own_only_if_overlays_show_all_paths() -> None:
    paths = RootfsPaths(
        links={}, readonly=[("/opt", "/opt"), ("/usr", "/usr")], path="", overlays={"/usr": ("/", "usr")}
    )
    made = confine(request(paths=paths), probe())
    assert made.plan["view"]["overlays"] == {"/usr": ("/", "usr")}
    assert [(lack.layer, lack.why) for lack in made.report.not_enforced if lack.layer == "own inodes"] == [
        ("own inodes", "no overlay can show /opt (1 of 2 paths)")
    ]
    refused = confine(request(), probe(without=("own inodes",)))
    assert refused.plan["view"]["overlays"] == {}
    assert "own inodes" not in refused.report.enforced
    assert refused.report.isolation == "full"


def test_without_cgroups_an_ordinary_user_still_has_a_hard_cap_on_tasks() -> None:
    made = confine(request(policy="required"), probe())
    assert made.report.isolation == "full"
    assert made.report.limits["processes"] == "hard"
    assert made.report.limits["memory_bytes"] == "supervised"
    assert made.plan["rlimits"]["NPROC"] == (128 + SPARE_TASKS,) * 2
    assert {lack.layer for lack in made.report.not_enforced} == {"memory cgroup", "pids cgroup"}


def test_where_a_cgroup_counts_the_tasks_no_rlimit_counts_a_family_as_one() -> None:
    assert "NPROC" not in confine(request(controllers=ALL_CONTROLLERS), probe()).plan["rlimits"]


def test_a_share_of_the_processor_is_told_only_where_one_is_set() -> None:
    lacking = confine(request(limits=Limits(cpu_cores=0.5)), probe()).report
    assert lacking.limits["cpu_cores"] == "none"
    assert "cpu cgroup" in {lack.layer for lack in lacking.not_enforced}
    held = confine(request(limits=Limits(cpu_cores=0.5), controllers=ALL_CONTROLLERS), probe()).report
    assert held.limits["cpu_cores"] == "hard"


def test_without_any_cap_on_tasks_it_is_not_full() -> None:
    made = confine(request(), probe(without=("task rlimit",)))
    assert made.report.isolation != "full"
    assert "NPROC" not in made.plan["rlimits"]
    assert made.report.limits["processes"] == "supervised"


@pytest.mark.parametrize("lost", ["mount namespace", "pid namespace", "ipc namespace", "filesystem", "user namespace"])
def test_a_view_takes_all_its_namespaces_or_none(lost: str) -> None:
    made = confine(request(), probe(without=(lost,)))
    assert made.report.isolation == "files"
    assert made.plan["namespaces"] == []
    assert made.plan["view"] is None
    assert made.plan["home"] == "/data/sessions/s/files"
    assert not made.plan["bounding"]
    assert f"no {lost} here" in {lack.why for lack in made.report.not_enforced}
    assert made.report.limits["network"] == "hard", "seccomp keeps it from internet sockets"


def test_with_little_it_is_called_a_process() -> None:
    made = confine(request(), probe(without=("mount namespace", "landlock", "seccomp")))
    assert made.report.isolation == "process"
    assert made.plan["seccomp"] is None
    assert made.plan["landlock"] is None
    assert made.report.limits["network"] == "none"


@pytest.mark.parametrize("lost", ["mount namespace", "seccomp", "capabilities", "net namespace"])
def test_required_refuses_less_and_says_what_is_missing(lost: str) -> None:
    with pytest.raises(SandboxUnavailable, match=f"no {lost} here") as refused:
        confine(request(policy="required"), probe(without=(lost,)))
    assert refused.value.details["isolation"] != "full"


@pytest.mark.parametrize("lost", ["proc", "uts namespace", "cgroup namespace", "landlock"])
def test_required_does_not_depend_on(lost: str) -> None:
    made = confine(request(policy="required"), probe(without=(lost,)))
    assert made.report.isolation == "full"
    assert lost in {lack.layer for lack in made.report.not_enforced}


def test_the_hosts_network_has_another_name_and_is_said() -> None:
    made = confine(request(policy="required", limits=Limits(network="host")), probe())
    assert made.report.isolation == "networked"
    assert "net" not in made.plan["namespaces"]
    assert "network" not in made.report.limits
    assert {lack.why for lack in made.report.not_enforced} >= {"the session asked for the host's network"}
    assert "dns" in made.plan["view"]["files"]["/etc/nsswitch.conf"]


RULES = Limits(network=NetworkRules(allow=("a.test", "b.test:5432")))


def test_rules_make_the_network_filtered_and_the_plan_has_their_ports() -> None:
    confined = confine(request(limits=RULES), probe())
    assert confined.report.isolation == "filtered"
    assert confined.report.limits["network"] == "hard"
    assert confined.plan["egress"] == [80, 443, 5432]
    assert confined.plan["view"]["files"]["/etc/resolv.conf"] == "nameserver 127.0.0.1\n"
    assert confine(request(), probe()).plan["egress"] is None


def test_only_rules_that_read_requests_show_the_proxys_certificate() -> None:
    confined = confine(request(limits=RULES, certificates="/run/ca"), probe())
    assert ["/run/ca", "/etc/kernelsvc", False, False] in confined.plan["view"]["binds"]
    assert confined.plan["env"]["SSL_CERT_FILE"] == "/etc/kernelsvc/certificates.pem"
    assert confined.plan["view"]["files"]["/etc/wgetrc"] == "ca_certificate = /etc/kernelsvc/certificates.pem\n"
    without = confine(request(limits=RULES), probe()).plan
    assert "SSL_CERT_FILE" not in without["env"]
    assert "/etc/wgetrc" not in without["view"]["files"]


@pytest.mark.parametrize("lost", ["egress", "net namespace", "filesystem"])
def test_rules_that_can_not_be_enforced_are_never_called_enforced(lost: str) -> None:
    confined = confine(request(limits=RULES), probe(without=(lost,)))
    assert "egress" not in confined.report.enforced
    assert "egress" in [lack.layer for lack in confined.report.not_enforced]
    assert confined.report.limits["network"] == "none"
    assert confined.plan["egress"] is None


def test_off_confines_nothing_but_keeps_the_limits() -> None:
    made = confine(request(policy="off", controllers=ALL_CONTROLLERS, cgroup=["/c/cgroup.procs"]), probe(root=True))
    assert made.report.isolation == "none"
    assert made.report.enforced == []
    assert made.plan["become"] is None
    assert made.plan["seccomp"] is made.plan["landlock"] is made.plan["view"] is None
    assert not made.plan["no_new_privs"]
    assert made.plan["cgroup"] == ["/c/cgroup.procs"]
    assert made.plan["rlimits"]["CORE"] == (0, 0)


def test_a_user_that_could_not_walk_to_its_files_is_not_taken() -> None:
    made = confine(request(reachable=False), probe(root=True, without=("filesystem",)))
    assert made.plan["become"] is None
    assert any(lack.layer == "user" and "searchable" in lack.why for lack in made.report.not_enforced)


def test_a_family_shows_its_directories_side_by_side() -> None:
    made = confine(request(group_dir="/data/families/f", workdir="/data/families/f/b1"), probe())
    assert made.plan["home"] == "/home/b1"
    assert ["/data/families/f", "/home"] in made.plan["view"]["writable"]
    grants = made.plan["landlock"]["grants"]
    assert [path for path, kind in grants if kind == "write" and path.startswith("/home")] == ["/home/b1", "/home/b1.d"]


def test_a_family_does_not_cover_python() -> None:
    places = RootfsPaths(links={}, readonly=[("/home/me/venv", "/home/me/venv")], path="/usr/bin")
    made = confine(request(group_dir="/data/f", workdir="/data/f/user", paths=places), probe())
    assert made.plan["home"] == made.plan["env"]["HOME"] == "/sessions/user"


def test_a_shared_directory_keeps_its_path_and_can_be_written() -> None:
    made = confine(request(share=["/run/k/1"]), probe())
    assert ["/run/k/1", "/run/k/1"] in made.plan["view"]["writable"]
    assert ["/run/k/1", "write"] in made.plan["landlock"]["grants"]


def test_memory_runs_out_softly_before_it_runs_out_hard() -> None:
    limits = Limits(memory_bytes=1024 * MiB)
    hard = confine(request(limits=limits, controllers=ALL_CONTROLLERS), probe()).plan["data_bytes"]
    soft = confine(request(limits=limits), probe()).plan["data_bytes"]
    assert soft == 1024 * MiB
    assert 900 * MiB < hard < 1024 * MiB


def test_the_environment_is_the_sessions_but_its_home_is_ours() -> None:
    made = confine(request(env={"KEY": "v", "HOME": "/root", "PATH": "/opt/bin"}), probe())
    assert made.plan["env"]["KEY"] == "v"
    assert made.plan["env"]["PATH"] == "/opt/bin"
    assert made.plan["env"]["HOME"] == made.plan["env"]["PWD"] == "/home/user"


@given(
    root=st.booleans(),
    policy=st.sampled_from(["best-effort", "off"]),
    without=st.sets(st.sampled_from(LAYERS)),
    controllers=st.sets(st.sampled_from(sorted(ALL_CONTROLLERS))),
    network=st.sampled_from(["none", "host"]),
    reachable=st.booleans(),
)
def test_the_report_never_claims_more_than_the_plan_does(
    root: bool, policy: str, without: set[str], controllers: set[str], network: str, reachable: bool
) -> None:
    made: Confinement = confine(
        request(
            policy=policy,
            controllers=frozenset(controllers),
            limits=Limits(network=network),  # type: ignore[arg-type]
            reachable=reachable,
        ),
        probe(root=root, without=tuple(without)),
    )
    plan, report = made.plan, made.report
    assert not set(report.enforced) & {lack.layer for lack in report.not_enforced}
    for space in ("user", "mount", "pid", "net", "ipc", "uts", "cgroup"):
        assert (f"{space} namespace" in report.enforced) == (space in plan["namespaces"])
        assert f"{space} namespace" not in without or space not in plan["namespaces"]
    assert ("seccomp" in report.enforced) == (plan["seccomp"] is not None)
    assert ("landlock" in report.enforced) == (plan["landlock"] is not None)
    assert ("filesystem" in report.enforced) == (plan["view"] is not None)
    assert ("user" in report.enforced) == (plan["become"] is not None)
    assert ("capabilities" in report.enforced) == plan["capabilities"]
    if report.isolation == "full":
        assert {"mount", "pid", "net", "ipc"} <= set(plan["namespaces"])
        assert plan["seccomp"]
        assert plan["no_new_privs"]
        assert "pids" in controllers or "NPROC" in plan["rlimits"]
        assert plan["become"] or "user" in plan["namespaces"]
    if plan["view"] is None and plan["seccomp"] is not None:
        assert report.isolation != "full"


def test_binds_are_in_the_view_and_need_one() -> None:
    binds = [Bind(source="/srv/sales", target="/data/sales")]
    made = confine(request(binds=binds), probe())
    assert made.plan["view"]["binds"] == [["/srv/sales", "/data/sales", False, False]]
    workspace = Bind(source="/data/w", target="/workspace", writable=True)
    made = confine(request(binds=[workspace], mapped=["/data/w"]), probe())
    assert made.plan["view"]["binds"] == [["/data/w", "/workspace", True, True]]
    assert ["/workspace", "write"] in made.plan["landlock"]["grants"]
    for lacking in ({"binds": binds, "policy": "off"}, {"binds": binds}):
        with pytest.raises(SandboxUnavailable, match="private root"):
            confine(request(**lacking), probe(without=("filesystem",)))


@pytest.mark.parametrize("path", ["/mnt/data", "/volume", "/data/other", "/mnt/a/b"])
def test_a_workspace_has_a_further_path_as_a_link(path: str) -> None:
    binds = [Bind(source="/w", target="/workspace", writable=True, link=path), Bind(source="/s", target="/data/sales")]
    assert confine(request(binds=binds), probe()).plan["view"]["links"][path] == "/workspace"


@pytest.mark.parametrize(
    "path",
    [
        "/usr/x",
        "/usr",
        "/bin/x",
        "/home/user/x",
        "/tmp/x",
        "/proc",
        "/data",
        "/data/sales/x",
        "/workspace/x",
        "/opt/py/x",
    ],
)
def test_a_further_path_never_lies_above_or_below_a_mount(path: str) -> None:
    # A mount below a link would be made on the machine's own directory.
    paths = RootfsPaths(links={"/bin": "usr/bin"}, readonly=[("/usr", "/usr"), ("/opt/py", "/opt/py")], path="/usr/bin")
    binds = [Bind(source="/w", target="/workspace", writable=True, link=path), Bind(source="/s", target="/data/sales")]
    with pytest.raises(BadRequest, match="in use"):
        confine(request(binds=binds, paths=paths), probe())


@pytest.mark.parametrize(("network", "alone"), [("none", True), ("host", False)])
def test_a_wheelhouse_is_shown_and_pip_knows_it(network: str, alone: bool) -> None:
    paths = RootfsPaths(links={}, readonly=[], path="/usr/bin", site="lib/python3.13/site-packages")
    asked = request(wheelhouse="/srv/wheels", paths=paths, limits=Limits(network=network))
    plan = confine(asked, probe()).plan
    assert plan["view"]["binds"] == [["/srv/wheels", "/wheels", False, False]]
    assert plan["env"]["PIP_FIND_LINKS"] == plan["env"]["UV_FIND_LINKS"] == "/wheels"
    assert plan["env"]["PIP_PREFIX"] == "/home/user/.local"
    assert ("PIP_NO_INDEX" in plan["env"]) is alone
    bare = confine(asked, probe(without=("filesystem",))).plan
    assert bare["env"]["PIP_FIND_LINKS"] == "/srv/wheels"
    assert ["/srv/wheels", "read"] in bare["landlock"]["grants"]
    assert "PIP_FIND_LINKS" not in confine(request(paths=paths), probe()).plan["env"]
