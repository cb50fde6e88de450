"""The async client with a scripted server, which can violate the protocol."""

import asyncio
import shutil
import ssl
import subprocess

import pytest
from faulty_server import TOKEN
from waiting import wait_until

from kernelsvc import errors
from kernelsvc.client import AsyncClient, CellFailed, ConnectionLost, Unreachable, connection
from kernelsvc.client import event_feed as feeds
from kernelsvc.model import events as ev


def numbers(events):
    return [int(line) for e in events if isinstance(e, ev.Stream) for line in e.text.split()]


async def test_a_cell_runs_and_comes_back(connect, server):
    client = await connect()
    session = await client.create_session()
    cell = await session.run("result 42")
    assert (cell.ok, cell.text, str(cell)) == (True, "42\n", "42\n")
    assert cell.raise_for_error() is cell


async def test_a_failed_cell_is_no_exception_until_asked(connect):
    session = await (await connect()).create_session()
    cell = await session.run("error ValueError no")
    assert cell.error.ename == "ValueError"
    with pytest.raises(CellFailed, match="ValueError: no") as caught:
        cell.raise_for_error()
    assert caught.value.cell is cell


async def test_a_stream_is_the_cells_events_in_order(connect):
    session = await (await connect()).create_session()
    stream = session.stream("lines 3")
    events = [event async for event in stream]
    assert isinstance(events[0], ev.CellQueued)
    assert isinstance(events[-1], ev.CellFinished)
    assert numbers(events) == [0, 1, 2]
    assert {event.cell for event in events} == {stream.id}
    assert (await stream.cell()).text == "0\n1\n2\n"


async def test_streams_side_by_side_in_one_session_each_get_their_own(connect):
    session = await (await connect()).create_session()

    async def read(n):
        return numbers([event async for event in session.stream(f"lines {n}")])

    assert await asyncio.gather(*(read(n) for n in (5, 50, 500))) == [list(range(n)) for n in (5, 50, 500)]


async def test_a_cut_connection_loses_and_repeats_nothing(connect, server):
    client = await connect()
    session = await client.create_session()
    got = []
    async for event in session.stream("lines 2000"):
        got.append(event)
        if len(got) in (100, 500, 1500):
            server.cut()
    assert numbers(got) == list(range(2000))
    assert client.reconnects == 3
    assert server.runs(session.id) == 1


@pytest.mark.parametrize("after", [1, 2, 3, 7])
async def test_a_cut_at_any_early_event(connect, server, after):
    server.drop_after = after
    session = await (await connect()).create_session()
    assert numbers([event async for event in session.stream("lines 20")]) == list(range(20))


async def test_a_hole_in_the_numbers_makes_the_client_attach_again(connect, server):
    server.skip = 10
    client = await connect()
    session = await client.create_session()
    assert numbers([event async for event in session.stream("lines 20")]) == list(range(20))
    assert client.reconnects == 1


async def test_a_waiting_run_survives_the_cut_and_runs_once(connect, server):
    session = await (await connect()).create_session()
    waiting = asyncio.create_task(session.run("wait gate\nresult done"))
    await wait_until(lambda: server.runs(session.id))
    server.cut()
    await wait_until(lambda: server.calls.count("session.execute") == 2)
    server.kernels.release("gate")
    assert (await waiting).text == "done\n"
    assert server.runs(session.id) == 1


async def test_create_is_sent_again_with_its_key(connect, server):
    server.mute = {"session.create"}
    client = await connect()
    making = asyncio.create_task(client.create_session())
    await wait_until(lambda: "session.create" in server.calls)
    server.mute = set()
    server.cut()
    await making
    assert server.count() == 1


async def test_what_cannot_be_sent_twice_says_so(connect, server):
    server.mute = {"session.interrupt"}
    session = await (await connect()).create_session()
    asking = asyncio.create_task(session.interrupt())
    await wait_until(lambda: "session.interrupt" in server.calls)
    server.cut()
    with pytest.raises(ConnectionLost):
        await asking
    assert (await session.run("result here")).ok


async def test_a_server_that_comes_back_is_found_again(connect, server):
    client = await connect()
    session = await client.create_session()
    stream = session.stream("lines 300")
    got = [await anext(stream) for _ in range(5)]
    port = server.port
    await server.pause()
    await server.start(port)
    got += [event async for event in stream]
    assert numbers(got) == list(range(300))
    assert isinstance(got[-1], ev.CellFinished)


async def test_a_server_that_stays_away_ends_the_waiting(connect, server):
    client = await connect(retry_seconds=0.2)
    session = await client.create_session()
    waiting = asyncio.create_task(session.run("wait gate"))
    stream = session.events(0)
    await anext(stream)
    await server.pause()
    with pytest.raises(Unreachable):
        await waiting
    with pytest.raises(Unreachable):
        async for _ in stream:
            pass


async def test_a_client_closes_as_soon_as_the_server_has_answered(connect, server, monkeypatch):
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 3600)
    client = await connect()
    session = await client.create_session()
    await session.run("1")
    await asyncio.wait_for(client.close(), 20)


async def test_a_state_is_reported_when_a_connection_is_lost_and_not_when_the_program_closes_it(connect, server):
    states = []
    client = await connect(on_state=states.append)
    await client.sessions()
    await client.create_session()
    await client.close()
    assert states == ["connected"]
    client = await connect(retry_seconds=0.2, on_state=states.append)
    waiting = asyncio.create_task((await client.create_session()).run("wait gate"))
    await server.pause()
    with pytest.raises(Unreachable):
        await waiting
    assert states == ["connected", "connected", "lost", "gone"]


async def test_an_error_of_the_callers_handler_ends_no_connection(connect):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(str(context["exception"])))

    def handler(state):
        raise ValueError(state)

    client = await connect(on_state=handler)
    await client.sessions()
    async with AsyncClient("http://127.0.0.1:9", "x", connect_seconds=0.0, on_state=handler) as client:
        with pytest.raises(Unreachable, match="kernelsvc serve"):
            await client.sessions()
    assert reported == ["connected", "gone"]


async def test_no_server_at_all():
    async with AsyncClient("http://127.0.0.1:9", "x", connect_seconds=0.0) as client:
        with pytest.raises(Unreachable, match="kernelsvc serve"):
            await client.sessions()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_a_certificate_that_is_not_trusted_is_named_immediately(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    async with asyncio.timeout(30), AsyncClient(f"https://127.0.0.1:{port}", "x", connect_seconds=600) as client:
        with pytest.raises(Unreachable, match=r"self-signed certificate.*SSL_CERT_FILE"):
            await client.sessions()
    listener.close()


async def test_a_wrong_token_is_told_at_once(server):
    url = await server.start()
    async with AsyncClient(url, "wrong", connect_seconds=30.0) as client:
        async with asyncio.timeout(5):
            with pytest.raises(errors.Unauthenticated):
                await client.create_session()
            with pytest.raises(errors.Unauthenticated):
                await client._rest.raw("GET", "/v1/sessions/s0/files/a")


async def test_errors_come_back_typed(connect):
    client = await connect()
    with pytest.raises(errors.NotFound, match="no session 'nowhere'"):
        await client.session("nowhere")
    session = await client.create_session()
    await session.close()
    with pytest.raises(errors.SessionClosed):
        await session.run("result 1")
    with pytest.raises(errors.SessionClosed):
        async for _ in session.stream("result 1"):
            pass
    threaded = await client.create_session()
    await threaded.run("set thread 1")
    with pytest.raises(errors.CannotFork) as caught:
        await threaded.branch()
    assert caught.value.details["reasons"] == ["the thread 'thread' is running"]


async def test_a_reader_that_lags_is_paused_and_loses_nothing(connect, server, monkeypatch):
    monkeypatch.setattr(feeds, "MAX_EVENTS", 100)
    session = await (await connect()).create_session()
    stream = session.stream("lines 5000")
    first = await anext(stream)
    await wait_until(lambda: server.cells(session.id)[0].state == "finished")
    await wait_until(lambda: "session.detach" in server.calls)
    assert (await session.run("result others")).ok
    assert numbers([first] + [event async for event in stream]) == list(range(5000))


async def test_events_from_the_beginning_while_a_stream_runs(connect, server):
    session = await (await connect()).create_session()
    await session.run("lines 10")
    stream = session.stream("input name? ", allow_stdin=True)
    await anext(stream)
    events = session.events()
    seen = [await anext(events) for _ in range(15)]
    assert [event.seq for event in seen] == list(range(1, 16))
    await wait_until(lambda: server.asks(session.id))
    await session.input(stream.id, "x")
    rest = [event async for event in stream]
    assert isinstance(rest[-1], ev.CellFinished)
    await session.close()
    seen += [event async for event in events]
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert isinstance(seen[-1], ev.SessionClosed)


async def test_the_same_cell_id_again_streams_the_old_events(connect, server):
    session = await (await connect()).create_session()
    first = [event async for event in session.stream("lines 5", cell="mine")]
    again = [event async for event in session.stream("lines 5", cell="mine")]
    assert [event.seq for event in again] == [event.seq for event in first]
    assert server.runs(session.id) == 1
    with pytest.raises(errors.CellExists):
        await session.run("lines 6", cell="mine")


async def test_events_that_there_are_now(connect, server):
    session = await (await connect()).create_session()
    await session.run("lines 7")
    seqs = [event.seq async for event in session.events(3, follow=False)]
    assert seqs == list(range(4, len(server.events(session.id)) + 1))


async def test_the_server_ends_an_attachment_with_a_reason(connect, server):
    session = await (await connect()).create_session()
    server.refuse_at = 5
    with pytest.raises(errors.CursorExpired):
        async for _ in session.stream("lines 9"):
            pass


async def test_breaking_out_of_a_stream_detaches(connect, server):
    client = await connect()
    session = await client.create_session()
    async for _ in session.stream("input name? ", allow_stdin=True):
        break
    await wait_until(lambda: "session.detach" in server.calls and not client._rpc._feeds)


async def test_batch(connect):
    session = await (await connect()).create_session()
    cells = await session.batch(["result 1", {"code": "lines 2", "cell": "two"}])
    assert [cell.text for cell in cells] == ["1\n", "0\n1\n"]
    assert cells[1].id == "two"


async def test_branches_are_sessions(connect):
    session = await (await connect()).create_session()
    branches = await session.branch(count=3)
    assert len({branch.id for branch in branches}) == 3
    assert (await branches[2].run("result 1")).ok


async def test_files(connect, tmp_path):
    session = await (await connect()).create_session()
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(range(256)) * 4096)
    assert await session.upload(big) == "big.bin"
    await session.upload(b"x,y\n", "a dir/täble#1.csv")
    files = [info for info in await session.files(recursive=True) if info.kind == "file"]
    assert {info.path: info.size for info in files} == {
        "big.bin": 1 << 20,
        "a dir/täble#1.csv": 4,
    }
    assert await session.download("a dir/täble#1.csv") == b"x,y\n"
    (tmp_path / "out").mkdir()
    saved = await session.save("big.bin", tmp_path / "out")
    assert saved.read_bytes() == big.read_bytes()
    await session.delete("big.bin")
    with pytest.raises(errors.NotFound):
        await session.save("big.bin", tmp_path / "out" / "no.bin")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["big.bin"]
    with pytest.raises(errors.BadRequest, match="'a dir' is a directory"):
        await session.download("a dir")
    odd = "caf\udce9"  # the byte E9
    await session.upload(b"odd", odd)
    assert odd in [info.path for info in await session.files()]
    assert await session.download(odd) == b"odd"
    await session.delete(odd)
    assert b"nothing" not in await session.notebook("py")
    with pytest.raises(errors.BadRequest):
        await session.upload(b"nameless")
    with pytest.raises(errors.BadRequest):
        await session.upload(tmp_path / "none")


async def test_a_unix_socket(server, tmp_path):
    url = await server.start(uds=str(tmp_path / "s.sock"))
    async with AsyncClient(url, TOKEN) as client:
        session = await client.create_session()
        assert (await session.run("result 1")).ok
        await session.upload(b"1", "a")
        assert await session.download("a") == b"1"


async def test_a_session_closes_with_its_block_unless_kept(connect, server):
    client = await connect()
    async with await client.create_session() as session:
        pass
    assert server.info(session.id).state == "closed"
    async with await client.create_session(keep=True) as kept:
        pass
    async with await client.session(kept.id):
        pass
    assert server.info(kept.id).state != "closed"


async def test_closing_the_client_ends_what_waits(connect):
    client = await connect()
    session = await client.create_session()
    waiting = asyncio.create_task(session.run("wait gate"))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(Unreachable):
        await waiting
    with pytest.raises(Unreachable):
        await session.run("result 1")


async def test_a_timeout_of_the_call_is_typed(connect):
    client = await connect()
    session = await client.create_session()
    with pytest.raises(errors.Timeout):
        await client._rpc.call(
            "session.execute", {"session": session.id, "code": "wait gate", "cell": "c"}, timeout=0.05
        )
