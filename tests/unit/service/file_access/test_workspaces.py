"""Directories of the machine that a session's file names, which may be another machine's or an archive's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from kernelsvc.model.limits import Limits
from kernelsvc.model.objects import Principal
from kernelsvc.model.storage.mounts import Bind, Mount
from kernelsvc.service.file_access.workspaces import Workspaces
from kernelsvc.session import SessionSpec
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories

SALES = Bind(source="/srv/sales", target="/data/sales")


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    mounts = {"sales": Mount(path=SALES.source), "pay": Mount(path="/srv/pay", principals=["boss"])}
    registry = cast("Any", None)  # only the calls of clients need it
    return Workspaces(Settings(mounts=mounts), registry, SessionDirectories(tmp_path))


def renewed(workspaces: Workspaces, *binds: Bind, workspace: str = "") -> SessionSpec:
    spec = SessionSpec(
        id="s", principal="ann", template="t", workdir="", kernel="k", created_at="", limits=Limits(),
        binds=[*binds], workspace=workspace,
    )  # fmt: skip
    workspaces.renew_binds(spec)
    return spec


@pytest.mark.parametrize(
    "bind",
    [
        SALES,
        Bind(source="/root", target=SALES.target),
        Bind(source="/srv/an-earlier-place", target=SALES.target, writable=True, link="/x"),
    ],
    ids=lambda bind: bind.source,
)
def test_a_mount_is_where_the_settings_have_it_now(workspaces: Workspaces, bind: Bind) -> None:
    assert renewed(workspaces, bind).binds == [SALES]


@pytest.mark.parametrize("target", ["/data/pay", "/data/gone", "/usr/bin", "/workspace", "/etc"])
def test_what_the_settings_do_not_show_is_left_out(workspaces: Workspaces, target: str) -> None:
    spec = renewed(workspaces, Bind(source="/root", target=target, writable=True), workspace="ann/none")
    assert (spec.binds, spec.workspace) == ([], "")


def test_a_workspace_is_the_directory_of_its_record(workspaces: Workspaces) -> None:
    ann = Principal(name="ann", token_sha256="", scopes=frozenset({"run"}))
    address, bind = workspaces.bind(ann, "notes", "/home/user/notes")
    moved = Bind(source="/root", target=bind.target, writable=True, link=bind.link)
    for found in (renewed(workspaces, moved, SALES, workspace=address), renewed(workspaces, bind, workspace=address)):
        assert bind in found.binds
        assert found.workspace == address
        assert all(each in (SALES, bind) for each in found.binds)
