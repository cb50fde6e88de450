"""The habits that a linter doesn't know: sizes, names, a test for each module, closed unions."""

from __future__ import annotations

import ast
import functools
import re
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernelsvc"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")
MAX_LINES = 800
#: In one folder.
MAX_FILES = 21
#: Names that say nothing, and so gather everything.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text("utf-8")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """A module and all statements in it. Expressions are left out: they are most of a tree, and hold no statement."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        yield (node := waiting.pop())
        waiting += [one for one in ast.iter_child_nodes(node) if isinstance(one, _STATEMENTS)]


_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


# One test for all modules, which lists those that fail: each worker of a run would collect a test for each module.


def test_a_module_is_not_too_long() -> None:
    lines = {name_of(path): len(text_of(path).splitlines()) for path in MODULES}
    too_long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert too_long == {}, f"at most {MAX_LINES} lines; move a part of each into a module of its own"


def test_a_module_has_a_name_that_says_something() -> None:
    assert [name_of(path) for path in MODULES if path.stem in EMPTY_NAMES] == []


def test_a_module_has_a_docstring() -> None:
    assert len(MODULES) > 100
    assert [name_of(path) for path in MODULES if not ast.get_docstring(parsed(path))] == []


def test_a_pattern_accepts_no_line_end_behind_it() -> None:
    # re: "$ matches the end of the string or just before the newline at the end of the string". JSON Schema's regular
    # expressions are those of ECMA-262, which have no \\Z.
    found = [each for path in MODULES for each in re.findall(r'pattern=rf?"([^"]+)"', text_of(path))]
    assert len(found) > 10
    assert [each for each in found if not each.endswith(r"$(?!\n)")] == []


def test_a_package_exports_no_name_of_a_module_in_it() -> None:
    """``from package import name`` would give the function or the module, depending on the order of imports."""
    packages = [path for path in MODULES if path.name == "__init__.py"]
    assert {name_of(path): found for path in packages if (found := _exported_modules(path))} == {}


def _exported_modules(path: Path) -> set[str]:
    package = ".".join(["kernelsvc", *path.parent.relative_to(PACKAGE).parts])
    bound = {
        alias.asname or alias.name
        for node in statements(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module != package
        for alias in node.names
    }
    return bound & {each.stem for each in path.parent.iterdir()}


#: Class names that two modules may share: both are public. The client's Session and Stream wrap the session of a server
#: and a cell's events, and SessionClosed is the error of a request to a session and the event that closed it.
PUBLIC_TWICE = {
    "Session": {"kernelsvc.client.sync_client", "kernelsvc.session.session"},
    "SessionClosed": {"kernelsvc.errors", "kernelsvc.model.events"},
    "Stream": {"kernelsvc.client.sync_client", "kernelsvc.model.events"},
}
#: Names that are still to be changed. An entry that is no longer needed fails the test: delete it.
STILL_TWICE: set[str] = set()


def test_no_class_name_stands_for_two_classes() -> None:
    modules: dict[str, set[str]] = {}
    for path in MODULES:
        relative = path.relative_to(PACKAGE).with_suffix("")
        for node in statements(parsed(path)):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, set()).add(".".join(["kernelsvc", *relative.parts]))
    twice = {name: found for name, found in modules.items() if len(found) > 1 and found != PUBLIC_TWICE.get(name)}
    assert set(twice) == STILL_TWICE, {name: found for name, found in twice.items() if name not in STILL_TWICE}


def test_functions_are_short() -> None:
    bodies = sorted(
        node.end_lineno - node.body[0].lineno + 1
        for path in MODULES
        for node in statements(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    assert statistics.median(bodies) <= 8
    assert bodies[int(len(bodies) * 0.95)] <= 45


def test_a_folder_is_not_too_full() -> None:
    for folder in {path.parent for path in MODULES}:
        count = len(list(folder.glob("*.py")))
        assert count <= MAX_FILES, f"{name_of(folder)} has {count} files; which of them are a part of their own?"


#: Circles of modules that are still there. Each one is to be broken up, not to be joined by another.
CIRCLES = (
    {"kernelsvc.cli.sessions.record", "kernelsvc.cli.run"},
    {"kernelsvc.guest.forking.fork", "kernelsvc.guest.main_loop"},
    {"kernelsvc.server.mcp", "kernelsvc.server.mcp.asgi_bridge", "kernelsvc.server.mcp.python_tool"},
    {
        "kernelsvc.session.checkpoints",
        "kernelsvc.session.kernel_lifecycle",
        "kernelsvc.session.kernel_output",
        "kernelsvc.session.limit_enforcer",
        "kernelsvc.session.session",
    },
)


def test_modules_import_one_another_in_no_circle_not_even_for_type_checking() -> None:
    graph = grimp.build_graph("kernelsvc")  # includes imports under TYPE_CHECKING and in functions
    below = {module: graph.find_upstream_modules(module) for module in graph.modules}
    circles = {frozenset(other for other in found if module in below[other]) for module, found in below.items()}
    assert [sorted(one) for one in circles if one and not any(one <= known for known in CIRCLES)] == []


def test_the_server_may_import_of_the_host_only_its_client_and_its_protocol() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    name = "of the kernel host, the server's process imports the client and the protocol"
    (contract,) = [one for one in settings["tool"]["importlinter"]["contracts"] if one["name"] == name]
    modules = {f"kernelsvc.host.{path.stem}" for path in (PACKAGE / "host").glob("*.py") if path.stem != "__init__"}
    assert set(contract["forbidden_modules"]) == modules - {"kernelsvc.host.client", "kernelsvc.host.protocol"}


@functools.cache
def importers() -> dict[str, set[Path]]:
    """Which test files import which module of ours."""
    found: dict[str, set[Path]] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in statements(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                found.setdefault(name, set()).add(path)
    return found


#: Modules that have no test file of their name and are imported by none, and the test that runs them all the same: in a
#: process of their own, through the package that re-exports them, or as part of one that is named.
TESTED_THROUGH = {
    "kernelsvc.protocol.method_params": "tests/unit/protocol/test_jsonrpc.py",
    "kernelsvc.cli.sessions.console": "tests/acceptance/test_console.py",
    "kernelsvc.host.port_sockets": "tests/integration/test_ports.py",
    "kernelsvc.service.ports.session_ports": "tests/unit/server/ports/test_handler.py",
    **dict.fromkeys(("kernelsvc.store.backups.backup", "kernelsvc.cli.backup"), "tests/acceptance/test_operate.py"),
    "kernelsvc.server.jupyter.models": "tests/integration/test_jupyter_access.py",
    "kernelsvc.answers.conversations": "tests/unit/server/openai/test_conversations.py",
    **dict.fromkeys(
        ("kernelsvc.cli.bridge", "kernelsvc.cli.companions.bridge_process"), "tests/integration/test_mcp_bridge.py"
    ),
    **dict.fromkeys(
        (
            "kernelsvc.cli.sessions.recorded_calls",
            "kernelsvc.client.offered",
            "kernelsvc.service.offer_directory",
            "kernelsvc.client.tools",
            "kernelsvc.guest.tools.calls",
            "kernelsvc.guest.tools.conversion",
            "kernelsvc.guest.tools.namespace",
            "kernelsvc.guest.tools.tool_errors",
            "kernelsvc.service.offers",
            "kernelsvc.service.offer_directory",
            "kernelsvc.cli.sessions.recorded_calls",
            "kernelsvc.session.tool_calls",
        ),
        "tests/integration/test_tool_calls.py",
    ),
    **dict.fromkeys(
        (
            "kernelsvc.egress.client",
            "kernelsvc.egress.daemon",
            "kernelsvc.egress.protocol",
            "kernelsvc.egress.relay",
            "kernelsvc.egress.upstream",
            "kernelsvc.guest.confine.egress",
            "kernelsvc.service.egress.connector",
        ),
        "tests/integration/test_network_rules.py",
    ),
    "kernelsvc.egress.lookups": "tests/attack/test_egress.py",
    "kernelsvc.egress.session_proxy": "tests/attack/test_egress.py",
    **dict.fromkeys(
        ("kernelsvc.service.file_access.workspaces", "kernelsvc.store.workspaces"),
        "tests/integration/test_mounts.py",
    ),
    "kernelsvc.cli.workspaces": "tests/integration/test_mounts.py",
    **dict.fromkeys(
        ("kernelsvc.cli.environments", "kernelsvc.store.environments"), "tests/integration/test_environments.py"
    ),
    "kernelsvc.cli.sessions.approvals": "tests/integration/test_tool_calls.py",
    **dict.fromkeys(
        (
            "kernelsvc.model.view.folding",
            "kernelsvc.model.view.line_search",
            "kernelsvc.model.view.plain_form",
            "kernelsvc.model.view.request",
            "kernelsvc.model.view.selection",
            "kernelsvc.model.view.terminal",
        ),
        "tests/unit/model/view/test_cell_view.py",
    ),
    "kernelsvc.guest.agents.tcp_relay": "tests/integration/test_kernels_zmq.py",
    "kernelsvc.guest.e2b.images": "tests/integration/test_e2b.py",
    "kernelsvc.guest.installed_packages": "tests/integration/test_networked_sessions.py",
    "kernelsvc.linux.tree_copy": "tests/integration/test_branches.py",
    "kernelsvc.protocol.openai.chat_answers": "tests/unit/answers/test_answers.py",
    "kernelsvc.server.e2b.links": "tests/integration/test_e2b_files.py",
    "kernelsvc.server.e2b.unsupported": "tests/integration/test_e2b.py",
    "kernelsvc.service.isolated_branch": "tests/integration/test_branches.py",
    "kernelsvc.session.session_info": "tests/unit/session/test_session.py",
    "kernelsvc.server.moving": "tests/cluster/test_nodes.py",
    "kernelsvc.session.runtime": "tests/unit/session/test_session.py",
    "kernelsvc.session.ports": "tests/unit/session/test_session.py",
    "kernelsvc.session.journal_writer": "tests/unit/session/test_session.py",
    "kernelsvc.store.html_export": "tests/integration/test_store_convert.py",
    "kernelsvc.server.e2b.exec_watch": "tests/integration/test_e2b_files.py",
    "kernelsvc.server.mcp.subscriptions": "tests/integration/test_mcp.py",
    "kernelsvc.cli.demo": "tests/acceptance/test_notebooks.py",
    "kernelsvc.cli.doctor": "tests/acceptance/test_cli.py",
    "kernelsvc.cli.demo_cells": "tests/acceptance/test_notebooks.py",
    "kernelsvc.cli.sessions.record": "tests/acceptance/test_cli.py",
    "kernelsvc.cli.run": "tests/acceptance/test_cli.py",
    "kernelsvc.cli.serve": "tests/acceptance/test_cli.py",
    "kernelsvc.client.sessions": "tests/unit/client/test_async_client.py",
    "kernelsvc.client.streams": "tests/unit/client/test_async_client.py",
    "kernelsvc.client.transfer": "tests/unit/client/test_http.py",
    "kernelsvc.guest.data.content_json": "tests/integration/test_kernel.py",
    "kernelsvc.guest.debugger": "tests/integration/test_kernel_debugger.py",
    "kernelsvc.guest.display": "tests/integration/test_kernel.py",
    "kernelsvc.store.notebook_document": "tests/unit/store/test_notebook_file.py",
    "kernelsvc.guest.forking.copy_tree": "tests/integration/test_kernel_fork.py",
    "kernelsvc.guest.forking.fork": "tests/integration/test_kernel_fork.py",
    "kernelsvc.guest.confine.init": "tests/integration/test_host.py",
    "kernelsvc.guest.interrupt_gate": "tests/integration/test_interrupts.py",
    "kernelsvc.guest.ipython": "tests/integration/test_kernel.py",
    "kernelsvc.guest.main_loop": "tests/integration/test_kernel.py",
    "kernelsvc.guest.exit_calls": "tests/integration/test_exits.py",
    "kernelsvc.guest.confine.exec_shim": "tests/integration/test_programs.py",
    "kernelsvc.guest.forking.forkserver": "tests/integration/test_host.py",
    "kernelsvc.guest.confine.layer_probe": "tests/unit/sandbox/test_probe.py",
    "kernelsvc.guest.confine.rootfs": "tests/integration/test_confinement.py",
    "kernelsvc.guest.wire_server": "tests/integration/test_kernel_wire.py",
    "kernelsvc.host.exec": "tests/integration/test_programs.py",
    "kernelsvc.host.forkserver": "tests/integration/test_host.py",
    "kernelsvc.kernels.forked.wire_connection": "tests/integration/test_host.py",
    "kernelsvc.host.container": "tests/integration/test_host.py",
    "kernelsvc.model.cell_fold": "tests/unit/model/test_notebook.py",
    "kernelsvc.model.outputs": "tests/unit/model/test_notebook.py",
    "kernelsvc.service.api": "tests/unit/protocol/test_jsonrpc.py",
    "kernelsvc.service.service": "tests/acceptance/test_docs.py",
    "kernelsvc.service.disposal.disposal": "tests/unit/service/disposal/test_archiving.py",
    "kernelsvc.egress.connection": "tests/attack/test_egress.py",
    "kernelsvc.service.egress.network_updates": "tests/integration/test_network_rules.py",
    "kernelsvc.service.egress.proxy_settings": "tests/integration/test_network_rules.py",
    "kernelsvc.service.host_settings": "tests/acceptance/test_cli.py",
    "kernelsvc.service.loading.session_loading": "tests/chaos/test_server_dies.py",
    "kernelsvc.service.loading.closed_sessions": "tests/chaos/test_large_logs.py",
    "kernelsvc.service.session_factory": "tests/acceptance/test_docs.py",
    "kernelsvc.service.creation": "tests/integration/test_warm_pool.py",
    "kernelsvc.service.warm_pool": "tests/integration/test_warm_pool.py",
    "kernelsvc.service.one_shot": "tests/unit/server/native/test_handlers.py",
    "kernelsvc.service.projections": "tests/acceptance/test_docs.py",
    "kernelsvc.session.spec": "tests/unit/session/test_session.py",
    "kernelsvc.session.kernel_lifecycle": "tests/unit/session/test_session.py",
    "kernelsvc.session.checkpoints": "tests/unit/session/test_session.py",
    "kernelsvc.session.session": "tests/unit/session/test_session.py",
    "kernelsvc.session.kernel_output": "tests/unit/session/test_session.py",
    "kernelsvc.session.cell_views": "tests/unit/session/test_session.py",
    "kernelsvc.server.jupyter.handlers": "tests/compat/test_jupyter_channels.py",
    "kernelsvc.server.e2b.control_plane": "tests/integration/test_e2b.py",
    "kernelsvc.server.e2b.interpreter": "tests/integration/test_e2b.py",
    "kernelsvc.server.e2b.process": "tests/integration/test_e2b_process.py",
    "kernelsvc.cli.mcp": "tests/integration/test_mcp_stdio.py",
    "kernelsvc.client.tool_backend": "tests/integration/test_mcp_stdio.py",
    "kernelsvc.integrations.anthropic": "tests/integration/test_integrations.py",
    "kernelsvc.integrations.tool_calls": "tests/integration/test_integrations.py",
    "kernelsvc.integrations.fastmcp": "tests/integration/test_integrations.py",
    "kernelsvc.integrations.smolagents": "tests/integration/test_integrations.py",
    "kernelsvc.integrations.gemini": "tests/integration/test_integrations.py",
    "kernelsvc.integrations.langchain": "tests/compat/test_function_calling.py",
    "kernelsvc.integrations.openai": "tests/integration/test_integrations.py",
    "kernelsvc.tools.session_resolver": "tests/integration/test_mcp.py",
    "kernelsvc.tools.backend": "tests/integration/test_mcp.py",
    "kernelsvc.tools.definitions": "tests/unit/tools/test_schema.py",
    "kernelsvc.guest.model_view.collections": "tests/unit/guest/model_view/test_values.py",
    "kernelsvc.guest.model_view.shell_errors": "tests/integration/test_kernel_errors.py",
    "kernelsvc.tools.toolbox": "tests/integration/test_mcp.py",
    "kernelsvc.server.mcp.tool_backend": "tests/integration/test_mcp.py",
    "kernelsvc.server.mcp.server": "tests/integration/test_mcp.py",
    "kernelsvc.server.mcp.asgi_bridge": "tests/integration/test_mcp.py",
    "kernelsvc.sandbox.idmap": "tests/integration/test_root_host.py",
    "kernelsvc.sandbox.quota": "tests/vm/guest_main.py",
    "kernelsvc.server.sandboxai": "tests/integration/test_sandboxai_sandboxfusion.py",
    "kernelsvc.server.sandboxfusion": "tests/integration/test_sandboxai_sandboxfusion.py",
    "kernelsvc.server.openai.containers": "tests/unit/server/openai/test_files.py",
    "kernelsvc.server.openai.handler": "tests/unit/server/openai/test_responses.py",
    "kernelsvc.server.handler": "tests/unit/server/native/test_handlers.py",
}


def test_a_module_has_a_test() -> None:
    without = [name_of(path) for path in MODULES if path.name != "__init__.py" and not _has_test(path)]
    assert without == [], "make a test file of its name, or say in TESTED_THROUGH which test runs it"


def _has_test(path: Path) -> bool:
    relative = path.relative_to(PACKAGE).with_suffix("")
    module = ".".join(["kernelsvc", *relative.parts])
    named = [
        ROOT / "tests" / "unit" / relative.parent / f"test_{path.stem}.py",
        ROOT / "tests" / "integration" / f"test_{path.stem}.py",
        ROOT / "tests" / "integration" / f"test_{'_'.join(relative.parts)}.py",
    ]
    if module in TESTED_THROUGH:
        named.append(ROOT / TESTED_THROUGH[module])
    return any(test.exists() for test in named) or bool(importers().get(module))


#: Unit tests of something other than one module of the package, and what that is.
NOT_OF_ONE_MODULE = {
    "protocol/openai/test_quirks.py": "several modules of its folder",
    "server/openai/test_upstream_quirks.py": "several modules of its folder",
    "guest/test_private_names.py": "several modules of its folder",
    "server/native/test_rest_fuzz.py": "every REST route, by its own OpenAPI document",
    "server/test_private_names.py": "several modules of its folder",
}
UNIT = ROOT / "tests" / "unit"


def _names_of(test: Path) -> tuple[str, str]:
    module = test.stem.removeprefix("test_")
    return f"{module}.py", f"{module}/__init__.py"


def test_unit_tests_mirror_the_package() -> None:
    """A test stands where its module stands. Tests of the tree itself, and of the tests' own parts, are at the top."""
    strays = [
        str(test.relative_to(UNIT))
        for test in UNIT.glob("*/**/test_*.py")
        if not any((PACKAGE / test.relative_to(UNIT).parent / name).exists() for name in _names_of(test))
    ]
    assert sorted(strays) == sorted(NOT_OF_ONE_MODULE)


def test_the_list_of_exceptions_holds_nothing_that_is_none() -> None:
    modules = {".".join(["kernelsvc", *p.relative_to(PACKAGE).with_suffix("").parts]) for p in MODULES}
    assert set(TESTED_THROUGH) <= modules
    assert all((ROOT / test).exists() for test in TESTED_THROUGH.values())


#: Fixed sleeps that a test has left, by file. The number may only be lowered; a new sleep is replaced by
#: ``wait_until`` or ``wait_for``. What is left proves that nothing happens in a time, strikes at moments that a random
#: number chooses, or yields to what no one outside can see.
SLEEPS_LEFT = {
    "attack/driver.py": 1,
    "chaos/test_any_order.py": 3,
    "chaos/test_clean_up.py": 1,
    "chaos/test_clients.py": 1,
    "chaos/test_disk.py": 4,
    "chaos/test_kernel_dies.py": 3,
    "chaos/test_power_loss.py": 1,
    "chaos/test_server_dies.py": 5,
    "compat/clients/e2b_commands.py": 2,
    "compat/clients/e2b_files.py": 1,
    "compat/clients/e2b_sync.py": 2,
    "compat/clients/e2b_together.py": 2,
    "compat/clients/jupyter_server_gateway.py": 1,
    "compat/clients/jupyterlab_browser.py": 1,
    "compat/clients/smolagents_jupyter.py": 1,
    "faulty_proxy.py": 1,
    "integration/test_confinement.py": 4,
    "integration/test_connections.py": 1,
    "integration/test_e2b.py": 1,
    "integration/test_host.py": 2,
    "integration/test_kernel.py": 2,
    "integration/test_kernel_contract.py": 1,
    "integration/test_kernel_wire.py": 2,
    "integration/test_kernels_zmq.py": 1,
    "integration/test_store_convert.py": 1,
    "integration/test_tool_calls.py": 2,
    "unit/guest/forking/test_fork_safety.py": 1,
    "unit/host/test_container_manager.py": 1,
    "unit/linux/test_acceptor.py": 1,
    "unit/linux/test_stopped_process.py": 2,
    "unit/sandbox/test_cgroup.py": 1,
    "unit/server/ws/test_socket_stream.py": 1,
    "unit/session/test_session.py": 1,
    "unit/store/test_journal.py": 1,
    "unit/store/test_notebook_file.py": 2,
    "vm/guest_main.py": 2,
    "vm/test_vm.py": 1,
}


def _fixed_sleeps(tree: ast.Module) -> int:
    """Calls of ``time.sleep`` or ``asyncio.sleep``, in the test itself, with anything but a plain 0."""
    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("time", "asyncio")
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
        for node in ast.walk(tree)
    )


def test_no_test_sleeps_for_a_fixed_time() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "waiting.py" and "sleep" in text_of(path)]
    found = {str(path.relative_to(ROOT / "tests")): _fixed_sleeps(parsed(path)) for path in tests}
    assert {path: number for path, number in found.items() if number > SLEEPS_LEFT.get(path, 0)} == {}
