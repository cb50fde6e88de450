"""Where sessions go, by the reports of nodes."""

from __future__ import annotations

import heapq
from collections import Counter
from random import Random

import pytest

from kernelsvc.model.cluster.placing import Candidate, choose, choose_for_key, rank, sessions_of
from kernelsvc.model.cluster.reports import NodeReport


def node(name: str, sessions: int = 0, **more: object) -> Candidate:
    return Candidate(name, NodeReport(sessions=sessions, max_sessions=100, ready=True, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unfit", [{"ready": False}, {"draining": True}, {"templates": ["other"]}], ids=["not ready", "draining", "template"]
)
def test_a_node_that_can_not_take_the_session_is_not_tried(unfit: dict[str, object]) -> None:
    away = Candidate("aaaaaa", NodeReport(max_sessions=100, **{"ready": True, **unfit}))  # type: ignore[arg-type]
    here = node("bbbbbb", templates=["python3"])
    assert choose([away, here], "python3", Random(1)) == [here]
    assert choose_for_key([away, here], "python3", "alice", "key") == [here]
    assert choose([away], "python3", Random(1)) == []


def test_the_less_loaded_of_two_is_first_and_memory_counts() -> None:
    few, many = node("aaaaaa", 10), node("bbbbbb", 50)
    assert choose([many, few], None, Random(1)) == [few, many]
    full = node("cccccc", 1, promised_bytes=90, memory_bytes=100)
    assert choose([full, many], None, Random(1)) == [many, full]
    few.sent = 60
    assert choose([many, few], None, Random(1)) == [many, few]


def test_old_reports_do_not_send_all_sessions_to_one_node() -> None:
    """All creations of one second see the same reports. Only the sender's own ones are counted."""
    random = Random(7)
    nodes = [node(f"{n:06x}", 50) for n in range(16)]
    nodes[3].report.sessions = 45
    for _ in range(400):
        choose(nodes, None, random)[0].sent += 1
    sizes = [each.report.sessions + each.sent for each in nodes]
    assert max(sizes) <= 1.05 * sum(sizes) / len(sizes)


@pytest.mark.parametrize("fronts", [1, 4])
@pytest.mark.parametrize("nodes", [4, 16, 64])
def test_up_to_64_nodes_that_are_nearly_full_stay_equally_full(nodes: int, fronts: int) -> None:
    """So the rate of all is close to the number of nodes times the rate of one. No clock: 15 seconds are simulated."""
    random, room, seconds = Random(1), 400, 15
    open_at = [int(0.9 * room)] * nodes
    views = [[node(f"{n:06x}") for n in range(nodes)] for _ in range(fronts)]
    ends = [(random.expovariate(1 / 60), n) for n in range(nodes) for _ in range(open_at[n])]
    heapq.heapify(ends)
    refused, fullest, rate = 0, 0.0, 0.9 * room * nodes / 60
    for second in range(seconds):
        for view in views:
            for n, each in enumerate(view):
                each.renew(NodeReport(sessions=open_at[n], max_sessions=room, ready=True))
        fullest = max(fullest, max(open_at) / (sum(open_at) / nodes))
        for number in range(int(rate)):
            now = second + number / rate
            while ends[0][0] <= now:
                open_at[heapq.heappop(ends)[1]] -= 1
            for each in choose(random.choice(views), None, random):
                n = int(each.node, 16)
                each.sent += 1
                if open_at[n] < room:
                    open_at[n] += 1
                    heapq.heappush(ends, (now + random.expovariate(1 / 60), n))
                    break
            else:
                refused += 1
    assert (refused, fullest <= 1.05) == (0, True)


def test_a_key_has_the_same_three_nodes_at_every_front_and_few_change_with_a_node() -> None:
    nodes = [node(f"{n:06x}") for n in range(8)]
    keys = [f"k{n}" for n in range(200)]
    first = {key: [each.node for each in choose_for_key(nodes, None, "alice", key)] for key in keys}
    assert first == {key: [each.node for each in choose_for_key(nodes[::-1], None, "alice", key)] for key in keys}
    assert max(Counter(names[0] for names in first.values()).values()) < 60
    joined = [*nodes, node("ffffff")]
    moved = sum(first[key][0] not in {each.node for each in choose_for_key(joined, None, "alice", key)} for key in keys)
    assert moved < 20
    assert [each.node for each in rank(nodes, "x")] == [each.node for each in rank(nodes[::-1], "x")]


def test_the_sessions_of_a_principal_are_counted_over_all_nodes() -> None:
    nodes = [node("aaaaaa", principals={"alice": 2, "bob": 1}), node("bbbbbb", principals={"alice": 3})]
    assert sessions_of(nodes, "alice") == 5
    assert sessions_of(nodes, "carol") == 0
    nodes[0].note_sent("carol")
    assert sessions_of(nodes, "carol") == 1
    nodes[0].renew(NodeReport(principals={"carol": 1}))
    assert sessions_of(nodes, "carol") == 1
