"""A request may lower the server's limits, within reason."""

import pytest

from kernelsvc.errors import BadRequest, LimitTooHigh
from kernelsvc.model.limits import FLOORS, Limits, LimitsRequest, shown_bytes
from kernelsvc.model.network.rules import NetworkRules

SERVER = Limits()


def test_what_is_not_asked_for_stays():
    assert SERVER.lowered(LimitsRequest()) == SERVER


def test_a_lower_limit_is_taken():
    assert SERVER.lowered(LimitsRequest(cell_seconds=2.5, memory_bytes=FLOORS["memory_bytes"])).cell_seconds == 2.5


@pytest.mark.parametrize(
    "wanted", [LimitsRequest(memory_bytes=2**40), LimitsRequest(cell_seconds=601), LimitsRequest(network="host")]
)
def test_a_higher_limit_is_refused(wanted):
    with pytest.raises(LimitTooHigh):
        SERVER.lowered(wanted)


@pytest.mark.parametrize("wanted", [LimitsRequest(memory_bytes=2_500_000), LimitsRequest(open_files=3)])
def test_a_limit_that_no_session_could_start_with_is_refused(wanted):
    with pytest.raises(BadRequest) as caught:
        SERVER.lowered(wanted)
    assert caught.value.code == "bad_request"


def test_no_limit_of_the_servers_is_no_ceiling():
    assert Limits(cell_seconds=None).lowered(LimitsRequest(cell_seconds=1e6)).cell_seconds == 1e6
    assert Limits(network="host").lowered(LimitsRequest(network="host")).network == "host"


@pytest.mark.parametrize(("name", "value"), [("connections", 17), ("bytes", 1001)])
def test_a_quota_of_the_network_above_the_servers_is_refused(name, value):
    server = Limits(network=NetworkRules(allow=("a.test",), connections=16, bytes=1000))
    with pytest.raises(LimitTooHigh, match=f"network.{name} = {value}"):
        server.lowered(LimitsRequest(network=NetworkRules(allow=("a.test",), **{name: value})))
    assert server.lowered(LimitsRequest(network=NetworkRules(allow=("a.test",)))).network.connections == 16


@pytest.mark.parametrize(("size", "shown"), [(1 << 20, "1 MiB"), (5000, "5 KiB"), (12, "12 bytes"), (0, "0 bytes")])
def test_a_small_size_is_not_shown_as_nothing(size, shown):
    assert shown_bytes(size) == shown
