"""MCP servers from the registries, unmodified, as functions of a session: the bridge starts them, code calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, node_with, python_with
from served import serving
from waiting import wait_for

from kernelsvc import Client

FILES = "@modelcontextprotocol/server-filesystem@2026.8.31"
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
TIME = "mcp-server-time==2026.10.19"
CODE = """
import json
found = tools.files.list_directory(path={folder!r})
text = tools.files.read_text_file(path={folder!r} + "/orders.csv")
text = text["content"] if isinstance(text, dict) else text
total = sum(int(line.split(",")[1]) for line in text.split())
hour = tools.clock.convert_time(source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo")
print(total, "orders.csv" in str(found), "21:00" in str(hour), "Echo: hi" in str(tools.every.echo(message="hi")))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * INSTALL_SECONDS + 120)]


def test_code_calls_the_tools_of_three_servers(short_tmp: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node (scripts/bootstrap compat)")
    modules = node_with(FILES, EVERYTHING) / "node_modules" / "@modelcontextprotocol"
    folder = short_tmp / "shop"
    folder.mkdir()
    (folder / "orders.csv").write_text("ana,7\nbo,35\n")
    commands = {
        "files": [node, str(modules / "server-filesystem" / "dist" / "index.js"), str(folder)],
        "every": [node, str(modules / "server-everything" / "dist" / "index.js"), "stdio"],
        "clock": [str(python_with(TIME)), "-m", "mcp_server_time"],
    }
    settings = short_tmp / "servers.toml"
    sections = [
        f'[tools.mcp.{name}]\ncommand = {json.dumps(command)}\napproval = {{"*" = "never"}}\n'
        for name, command in commands.items()
    ]
    settings.write_text("".join(sections))
    with (
        serving(short_tmp / "own", "--config", str(settings)) as own,
        Client(own.url, own.token) as client,
        client.create_session() as session,
    ):
        wait_for(
            lambda: session.run("print({'files', 'every', 'clock'} <= {*dir(tools)})").text == "True\n",
            what="the functions of three servers",
            deadline=60,
        )
        assert session.run(CODE.format(folder=str(folder))).text == "42 True True True\n"
        assert [call.status for call in session.calls()] == ["ok"] * 4
