"""The scenarios that every client passes: a few of them with each client. ``make test-typescript`` runs all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from clients.relay import Relay
from environments import clean_env
from served import Served

from clients import suite

pytestmark = pytest.mark.timeout(120)


def command(client: str) -> list[str]:
    return suite.python_driver() if client == "python" else suite.typescript_driver([suite.node_here()])


@pytest.fixture(scope="module", params=["python", "typescript"])
def relay(request: pytest.FixtureRequest, served: Served) -> Iterator[Relay]:
    with Relay(served).open() as relay, suite.driving(relay, command(request.param)):
        yield relay


@pytest.mark.parametrize("scenario", [each for each in suite.SCENARIOS if each.get("smoke")], ids=suite.name_of)
def test_a_scenario(relay: Relay, scenario: dict) -> None:
    suite.check(relay, scenario)


def run_program(program: str, **env: str) -> str:
    """Run a program that imports the client's sources in Node, and return its output."""
    sources = f"const SOURCES = {(suite.TYPESCRIPT / 'src').as_uri()!r};"
    words = [suite.node_here(), "--input-type=module", "--eval", sources + program]
    done = subprocess.run(words, env=clean_env(**env), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_headers_the_typescript_client_sends_its_token_in_no_address(served: Served) -> None:
    """As in a browser, whose WebSocket has no headers. Proxies log addresses."""
    program = """
    const addresses = [];
    globalThis.WebSocket = class extends WebSocket {
      constructor(address, protocols) {
        super(address, protocols);
        addresses.push(String(address));
      }
    };
    Object.defineProperty(globalThis, "navigator", { value: { userAgent: "Cloudflare-Workers" } });
    const { Client } = await import(`${SOURCES}/index.ts`);
    await using client = new Client();
    console.log(Object.keys(await client.info()).includes("version"), addresses.join());
    """
    printed = run_program(program, KERNELSVC_URL=served.url, KERNELSVC_TOKEN=served.token).split()
    assert printed == ["true", f"{served.url.replace('http', 'ws', 1)}/v1/ws"]


def test_an_error_of_the_callers_handler_ends_no_connection(served: Served) -> None:
    program = """
    const uncaught = [];
    process.on("uncaughtException", (error) => uncaught.push(error.message));
    const onState = (state) => { throw new Error(state); };
    const { Client } = await import(`${SOURCES}/index.ts`);
    {
      await using client = new Client({ onState });
      await client.info();
    }
    const gone = new Client({ url: "http://127.0.0.1:9", connectSeconds: 0, onState });
    const code = await gone.info().catch((error) => error.code);
    await new Promise((resolve) => setImmediate(resolve));
    console.log(code, uncaught.join());
    """
    printed = run_program(program, KERNELSVC_URL=served.url, KERNELSVC_TOKEN=served.token)
    assert printed.split() == ["unreachable", "connected,gone"]


@pytest.mark.parametrize(
    ("wanted", "is_id"),
    [("s_0123456789abcdef", True), ("s_a1b2c30123456789abcdef", True), ("s_0123456789abcdef0", False), ("a", False)],
)
def test_a_tool_of_the_ai_sdk_takes_ids_of_a_server_and_of_a_node(wanted: str, is_id: bool) -> None:
    program = """
    const { Sessions } = await import(`${SOURCES}/ai/sessions.ts`);
    const client = { session: async (id) => `by id`, sessions: async () => [], createSession: async () => `by name` };
    console.log(await new Sessions(client, "default").open(process.env.WANTED));
    """
    assert run_program(program, WANTED=wanted).strip() == ("by id" if is_id else "by name")


def test_an_abort_after_the_end_of_a_stream_interrupts_nothing(served: Served) -> None:
    program = """
    const { Client } = await import(`${SOURCES}/index.ts`);
    await using client = new Client();
    await using session = await client.createSession();
    const stop = new AbortController();
    const code = "import os, time\\nwhile not os.path.exists('go'): time.sleep(0.01)";
    const stream = session.stream(code, { signal: stop.signal, onAbort: "interrupt" });
    await stream.next();
    await stream.return();
    stop.abort();
    // An interrupt would follow the answer to a request that was sent before these.
    await session.info();
    await session.info();
    await session.upload("", "go");
    console.log((await stream.cell()).reason);
    """
    assert run_program(program, KERNELSVC_URL=served.url, KERNELSVC_TOKEN=served.token).strip() == "ok"
