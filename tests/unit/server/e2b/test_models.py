"""E2B's control plane as functions of values."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernelsvc.errors import BadRequest, NotFound, NotSupported
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.limits import Limits, Usage
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.model.usage_history import UsageSample
from kernelsvc.server.e2b import models


def session(number: int = 1, **changes: Any) -> SessionInfo:
    fields: dict[str, Any] = {
        "id": f"s_{number}", "name": None, "template": "python3", "state": SessionState.IDLE,
        "created_at": f"2026-01-01T00:00:0{number}.000000Z", "last_activity_at": "", "principal": "p",
        "expires_at": "2026-01-01T01:00:00.000000Z", "labels": {}, "limits": Limits(cpu_cores=1.5), "usage": Usage(),
        "last_seq": 1, "execution_count": 0, "parent": None, "kernel": None, "sandbox": SandboxReport(),
        "checkpoints": [],
    }  # fmt: skip
    return SessionInfo(**(fields | changes))


def request(**asked: Any) -> Any:
    return models.request_of(models.decode(asked), None, None)


def test_a_volume_is_the_workspace_at_its_path() -> None:
    made = request(volumeMounts=[{"name": "w", "path": "/mnt/w/"}])
    assert (made.workspace, made.workspace_path) == ("w", "/mnt/w")
    plain = request(volumeMounts=[{"name": "w", "path": "/workspace"}])
    assert (plain.workspace, plain.workspace_path) == ("w", None)
    box = session(workspace="p/w", labels=made.labels)
    assert models.detail_model(box, None)["volumeMounts"] == [{"name": "w", "path": "/mnt/w/"}]
    for wrong, error in (
        ([{"name": "w", "path": "mnt"}], BadRequest),
        ([{"name": "w", "path": "/a/../b"}], BadRequest),
        ([{"name": "a b", "path": "/mnt"}], BadRequest),
        ([{"name": "w", "path": "/a"}, {"name": "v", "path": "/b"}], NotSupported),
    ):
        with pytest.raises(error):
            request(volumeMounts=wrong)


def test_a_request_becomes_a_session() -> None:
    made = request(
        templateID="base", metadata={"user": "x"}, envVars={"A": "1"}, autoPause=True, autoResume={"enabled": True},
        allow_internet_access=False, somethingNew=1,
    )  # fmt: skip
    assert made.labels == {"user": "x", models.TEMPLATE: "base", models.PAUSES: "yes", models.RESUMES: "yes"}
    assert made.env == {"A": "1", "E2B_SANDBOX": "true"}
    assert made.limits.network == "none"
    assert request().limits.network is None


@pytest.mark.parametrize(
    "asked",
    [
        {"timeout": "x"}, {"metadata": {"a": 1}}, {"envVars": {"A B": "x"}}, {"metadata": {"e2b.x": "y"}},
        {"metadata": {"x": "y" * 300}},
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        request(**asked)


def test_the_host_of_requests_to_the_sandboxs_servers() -> None:
    asked = request(network={"maskRequestHost": "app.example.com:${PORT}"})
    masked = session(labels=asked.labels)
    assert models.host_for(masked, 3000) == "app.example.com:3000"
    assert models.metadata(masked) == {}
    for labels in ({}, {models.HOST: "a\r\nX: 1"}):
        assert models.host_for(session(labels=labels), 3000) == "localhost:3000"


def test_unsupported_operations_get_an_error() -> None:
    for asked in ({"network": {"egressProxy": {"address": "a"}}}, {"iam": {"x": 1}}, {"mcp": {"x": {}}}):
        with pytest.raises(NotSupported):
            request(**asked)
    assert request(network={}, mcp=None)


def test_e2bs_templates_are_ours_or_none() -> None:
    assert [models.template_of(name, ["python3"]) for name in ("base", "code-interpreter-v1", "")] == [None] * 3
    assert models.template_of("python3:v2", ["python3"]) == "python3"
    with pytest.raises(NotFound, match="python3"):
        models.template_of("other", ["python3"])


def test_a_sandbox_is_shown_as_e2b_shows_it() -> None:
    shown = models.detail_model(session(labels={"user": "x", models.PAUSES: "yes"}, paused=True), "secret")
    assert (shown["sandboxID"], shown["state"], shown["metadata"]) == ("s-1", "paused", {"user": "x"})
    assert (shown["cpuCount"], shown["memoryMB"], shown["envdAccessToken"]) == (2, 2048, "secret")
    assert shown["lifecycle"] == {"onTimeout": "pause", "autoResume": False}
    assert models.access_model(session(), "a", "b")["trafficAccessToken"] == "b"


def test_use_is_shown_in_e2bs_units() -> None:
    samples = [
        UsageSample(1767225611.0, 1.0, 5, 7),
        UsageSample(1767225616.0, 11.0, 6, 8),
        UsageSample(1767225621.0, 1.0, 6, 8),
    ]
    shown, later, again = models.metric_models(session(), samples)
    assert (shown["cpuUsedPct"], shown["memUsed"], shown["diskUsed"]) == (5.0, 5, 7)
    assert shown["timestamp"] == "2026-01-01T00:00:11Z"
    assert (later["cpuUsedPct"], again["cpuUsedPct"]) == (100.0, 0.0)
    assert models.metric_models(session(limits=Limits(memory_bytes=None)), samples)[0]["memTotal"] > 0


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "1" * 13])
def test_a_moment_is_whole_seconds(text: str) -> None:
    assert (models.moment({"start": "7"}, "start", 0), models.moment({}, "start", 3)) == (7, 3)
    with pytest.raises(BadRequest):
        models.moment({"start": text}, "start", 0)


def test_contexts_and_snapshots_are_no_sandboxes() -> None:
    snapshot = session(labels=models.snapshot_labels("", "s_9"))
    assert models.is_sandbox(session())
    assert not models.is_sandbox(session(sidecar_of="s_2"))
    assert not models.is_sandbox(snapshot)
    assert models.is_sandbox(session(labels=snapshot.labels | models.no_snapshot()))
    assert models.snapshot_model(snapshot) == {"snapshotID": "s-1", "names": []}
    named = session(labels=models.snapshot_labels("n", "s_9"))
    assert models.snapshot_model(named)["names"] == ["n"]
    fitting: list[dict[str, str]] = [{}, {"sandboxID": "s_9"}, {"name": "n:latest"}, {"name": "s_1"}]
    assert all(models.matches_snapshot(named, asked) for asked in fitting)
    assert not any(models.matches_snapshot(named, asked) for asked in ({"sandboxID": "s_8"}, {"name": "m"}))


def test_a_listing_is_filtered() -> None:
    one = session(labels={"a b": "c&d", models.TEMPLATE: "base"})
    for asked in (
        {}, {"state": "running,paused"}, {"template": "base"}, {"template": "python3"},
        {"startedAfter": "2026-01-01T00:00:00Z"}, {"metadata": "a%2520b=c%2526d"},
    ):  # fmt: skip
        assert models.matches(one, asked), asked
    for asked in (
        {"state": "paused"}, {"template": "x"}, {"startedAfter": "2026-01-02T00:00:00+01:00"}, {"metadata": "a=b"},
    ):  # fmt: skip
        assert not models.matches(one, asked), asked
    with pytest.raises(BadRequest):
        models.matches(one, {"startedAfter": "soon"})


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_neither_repeat_nor_hide(order: str) -> None:
    found = [session(number) for number in range(1, 6)]
    seen: list[str] = []
    token: str | None = ""
    while token is not None:
        asked = {"limit": "2", "order": order} | ({"nextToken": token} if token else {})
        shown, token = models.page(found, asked, 10)
        seen += [each.id for each in shown]
    wanted = [each.id for each in found]
    assert seen == (wanted if order == "asc" else wanted[::-1])


@pytest.mark.parametrize("asked", [{"limit": "0"}, {"limit": "x"}, {"limit": "11"}, {"nextToken": "?"}])
def test_a_page_that_is_none_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        models.page([session()], asked, 10)


def test_names_of_fields_are_e2bs() -> None:
    assert {field.encode_name for field in msgspec.structs.fields(models.NewSandbox)} >= {"templateID", "envVars"}
