"""Programs and libraries that people use, in a session with rules: each reaches the servers as it is.

    python network_clients.py [--programs DIRECTORY] CLIENT ...

Prints one JSON object: for each client the result by way, or the error. The ways are ``http`` and ``https`` (passed
through unread) to ``open.test``, and ``read`` (HTTPS that the proxy reads, with a key that it adds) to ``read.test``.
Programs get the trust in the proxy's authority by the environment that the session has, and by no option, unless the
function says so.
"""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {"http": "http://open.test", "https": "https://open.test", "read": "https://read.test"}
BUNDLE = os.environ["SSL_CERT_FILE"]
clients = {}


class Missing(Exception):
    """The program is not on this machine."""


def client(name, *ways):
    def add(function):
        clients[name] = (function, ways or tuple(WAYS))
        return function

    return add


def run(*command, **more):
    program = shutil.which(command[0])
    if program is None:
        raise Missing(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=60, **more)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout.strip()


def scratch():
    return tempfile.mkdtemp(dir=os.environ["HOME"])


@client("curl --http1.1")
def _(url):
    return run("curl", "-sS", "--fail-with-body", "--http1.1", f"{url}/said")


@client("curl --http2")
def _(url):
    return run("curl", "-sS", "--fail-with-body", "--http2", f"{url}/said")


@client("curl, an upload of 1 MB")
def _(url):
    return run("curl", "-sS", "--data-binary", "@-", f"{url}/said", input="x" * 1_000_000)


@client("wget")
def _(url):
    return run("wget", "-qO-", f"{url}/said")


@client("git clone")
def _(url):
    place = scratch()
    run("git", "clone", "-q", f"{url}/thing.git", place)
    return Path(place, "README").read_text()


@client("openssl s_client", "https", "read")
def _(url):
    host = url.removeprefix("https://")
    request = f"GET /said HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    options = ("-quiet", "-verify_return_error", "-verify_hostname", host, "-servername", host)
    return run("openssl", "s_client", *options, "-connect", f"{host}:443", input=request).splitlines()[-1]


@client("apt-get update")
def _(url):
    # Its TLS reads the system's certificates, and no variable names others: the option of apt.conf(5) does.
    place = Path(scratch())
    for each in ("lists/partial", "cache/archives/partial", "etc"):
        (place / each).mkdir(parents=True)
    (place / "status").touch()
    (place / "sources.list").write_text(f"deb [trusted=yes] {url}/deb ./\n")
    options = {
        "Dir::State": place, "Dir::State::lists": place / "lists", "Dir::State::status": place / "status",
        "Dir::Cache": place / "cache", "Dir::Etc::sourcelist": place / "sources.list", "Dir::Etc::sourceparts": "/-",
        "Dir::Etc::parts": "/-", "APT::Sandbox::User": "", "Acquire::https::CaInfo": BUNDLE, "Acquire::Retries": 0,
    }  # fmt: skip
    flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
    run("apt-get", *flags, "update", "--error-on=any")
    return run("apt-cache", *flags, "show", "thing").splitlines()[0]


@client("pip install")
def _(url):
    # pip trusts no plain HTTP unless it is told to.
    more = ("--trusted-host", url.partition("//")[2]) if url.startswith("http:") else ()
    options = ("-q", "--no-deps", "--disable-pip-version-check", "--no-cache-dir", "--force-reinstall")
    run(sys.executable, "-m", "pip", "install", *options, "--index-url", f"{url}/simple", *more, "thing")
    return next(Path(os.environ["HOME"], ".local").rglob("thing.py")).read_text().split()[0]


@client("uv pip install")
def _(url):
    place = scratch()
    uv = str(Path(sys.executable).parent / "uv")
    command = ("pip", "install", "-q", "--no-deps", "--no-cache", "--python", sys.executable, "--target", place)
    run(uv, *command, "--index-url", f"{url}/simple", "thing")
    return Path(place, "thing.py").read_text().split()[0]


@client("npm install")
def _(url):
    place = scratch()
    run("npm", "install", "--silent", "--no-audit", "--no-fund", f"--registry={url}/npm/", "thing", cwd=place)
    return run("node", "-e", "console.log(require('thing'))", cwd=place)


@client("node, fetch")
def _(url):
    return run("node", "-e", f"fetch('{url}/said').then(r => r.text()).then(console.log)")


@client("node, http and https")
def _(url):
    kind = url.partition(":")[0]
    return run("node", "-e", f"require('{kind}').get('{url}/said', r => r.on('data', d => console.log(String(d))))")


@client("deno, fetch")
def _(url):
    return run(
        "deno",
        "eval",
        f"console.log(await (await fetch('{url}/said')).text())",
        env=os.environ | {"DENO_DIR": scratch()},
    )


@client("bun, fetch")
def _(url):
    return run("bun", "-e", f"console.log(await (await fetch('{url}/said')).text())")


@client("java, HttpClient, its trust by keytool")
def _(url):
    place = Path(scratch())
    keys = ["-keystore", str(place / "keys"), "-storepass", "changeit"]
    if shutil.which("keytool") is None:
        raise Missing("keytool is not installed")
    for number, pem in enumerate(Path(BUNDLE).read_text().split("-----END CERTIFICATE-----")[:2]):
        (place / "one.pem").write_text(pem + "-----END CERTIFICATE-----\n")
        run("keytool", "-importcert", "-noprompt", *keys, "-alias", str(number), "-file", str(place / "one.pem"))
    (place / "Get.java").write_text("""
import java.net.URI; import java.net.http.*;
public class Get { public static void main(String[] a) throws Exception {
  HttpRequest request = HttpRequest.newBuilder(URI.create(a[0])).build();
  System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body()); } }""")
    trust = ["-Djavax.net.ssl.trustStorePassword=changeit", f"-Djavax.net.ssl.trustStore={place / 'keys'}"]
    return run("java", "-Xmx64m", "-XX:+UseSerialGC", *trust, str(place / "Get.java"), f"{url}/said")


@client("Python: urllib.request")
def _(url):
    import urllib.request

    return urllib.request.urlopen(f"{url}/said", timeout=20).read().decode()


@client("Python: http.client")
def _(url):
    import http.client

    kind, _, host = url.partition("://")
    connection = (http.client.HTTPSConnection if kind == "https" else http.client.HTTPConnection)(host, timeout=20)
    said = []
    for _ in range(3):
        connection.request("GET", "/said")
        said.append(connection.getresponse().read().decode())
    return "; ".join(dict.fromkeys(said))


@client("urllib3")
def _(url):
    import urllib3

    return urllib3.request("GET", f"{url}/said").data.decode()


@client("requests, a session of three")
def _(url):
    import requests

    with requests.Session() as session:
        return "; ".join(dict.fromkeys(session.get(f"{url}/said").text for _ in range(3)))


@client("requests, a chunked upload")
def _(url):
    import requests

    return requests.post(f"{url}/said", data=(b"z" * 20_000 for _ in range(50))).text


@client("httpx")
def _(url):
    import httpx

    return httpx.get(f"{url}/said").text


@client("httpx with HTTP/2, 20 at once")
def _(url):
    import httpx

    async def main():
        async with httpx.AsyncClient(http2=True, timeout=20) as session:
            found = await asyncio.gather(*(session.get(f"{url}/said/{n}") for n in range(20)))
        return "; ".join(sorted({one.text for one in found}))

    return asyncio.run(main())


@client("aiohttp")
def _(url):
    import aiohttp

    async def main():
        async with aiohttp.ClientSession() as session, session.get(f"{url}/said") as found:
            return await found.text()

    return asyncio.run(main())


@client("asyncio, streams")
def _(url):
    async def main():
        kind, _, host = url.partition("://")
        tls = ssl.create_default_context() if kind == "https" else None
        reader, writer = await asyncio.open_connection(host, 443 if tls else 80, ssl=tls)
        writer.write(f"GET /said HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return answer.rpartition("\r\n\r\n")[2]

    return asyncio.run(main())


@client("websockets")
def _(url):
    from websockets.sync.client import connect

    with connect(f"{url.replace('http', 'ws', 1)}/ws") as socket:
        said = []
        for _ in range(100):
            socket.send("echoed")
            said.append(socket.recv(timeout=20))
        return "; ".join(dict.fromkeys(said))


@client("websocket-client")
def _(url):
    import websocket

    options = {"ca_certs": BUNDLE}  # it reads WEBSOCKET_CLIENT_CA_BUNDLE, and no other variable
    socket = websocket.create_connection(f"{url.replace('http', 'ws', 1)}/ws", sslopt=options, timeout=20)
    socket.send("echoed")
    try:
        return socket.recv()
    finally:
        socket.close()


@client("boto3, S3")
def _(url):
    import boto3

    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "eu-west-1"}
    return boto3.client("s3", endpoint_url=f"{url}/s3/", **keys).list_buckets()["Buckets"][0]["Name"]


@client("openai")
def _(url):
    import openai

    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    asked = [{"role": "user", "content": "hello"}]
    return api.chat.completions.create(model="m", messages=asked).choices[0].message.content


@client("anthropic")
def _(url):
    import anthropic

    api = anthropic.Anthropic(base_url=url, api_key="none")
    asked = [{"role": "user", "content": "hello"}]
    return api.messages.create(model="m", max_tokens=9, messages=asked).content[0].text


@client("psql", "tcp")
def _(url):
    try:
        return run(
            "psql", "postgresql://me:none@open.test/db", "-c", "select 1", env=os.environ | {"PGCONNECT_TIMEOUT": "20"}
        )
    except RuntimeError as error:
        return str(error).rpartition("FATAL:")[2].strip()


@client("psycopg", "tcp")
def _(url):
    import psycopg

    try:
        psycopg.connect("postgresql://me:none@open.test/db", connect_timeout=20)
    except psycopg.OperationalError as error:
        return str(error).rpartition("FATAL:")[2].strip()


@client("redis", "tcp")
def _(url):
    import redis

    return str(redis.Redis("open.test", socket_timeout=20, protocol=2).ping())


@client("grpc", "tcp", "read")
def _(url):
    import grpc

    host = "read.test" if "read" in url else "open.test"
    credentials = grpc.ssl_channel_credentials(Path(BUNDLE).read_bytes())
    with grpc.secure_channel(f"{host}:8443", credentials) as channel:
        try:
            return channel.unary_unary("/test.Echo/Say")(b"echoed", timeout=10).decode()
        except grpc.RpcError as error:
            return error.code().name


def main():
    options = sys.argv[1:]
    if options[:1] == ["--programs"]:
        os.environ["PATH"] = f"{options[1]}:{os.environ['PATH']}"
        options = options[2:]
    found = {}
    for name in options or clients:
        function, ways = clients[name]
        found[name] = {}
        for way in ways:
            began = time.monotonic()
            try:
                said = function(WAYS.get(way, "tcp"))
            except Missing as error:
                said = f"skipped: {error}"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"[:400]
            found[name][way] = str(said).strip()
            print(f"{name}, {way}: {said} ({time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)
    print(json.dumps(found))


main()
