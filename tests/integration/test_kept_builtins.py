"""Cells that delete builtins: the next cells run all the same. Real kernels over the real wire."""

from __future__ import annotations

import pytest
from kernel_processes import Client

#: Names without which IPython, the traceback or the end of a cell would fail, and one that only user code needs.
NAMES = [
    "__import__",
    "__build_class__",
    "BaseException",
    "SystemExit",
    "getattr",
    "isinstance",
    "len",
    "type",
    "display",
]


@pytest.mark.parametrize("name", NAMES)
async def test_a_deleted_builtin_is_back_for_the_next_cell(k: Client, name: str) -> None:
    before = await k.run(f"import builtins; kept = builtins.{name}; del builtins.{name}; 42")
    assert (before.result, before.error) == ("42", None)
    assert (await k.run(f"builtins.{name} is kept")).result == "True"
    assert (await k.run(f"if 1:\n    builtins.another = 1; del builtins.{name}\n42")).result == "42"
    assert (await k.run(f"del builtins.another\nbuiltins.{name} is kept")).result == "True"
    failed = await k.run("1 / 0")
    assert failed.error == "ZeroDivisionError"
    assert failed.messages("error")[0].content["traceback"]


@pytest.mark.parametrize("cell", ["{del_}; 1 / 0", "async def f(): {del_}; 1 / 0\nawait f()", "{del_}; raise kept"])
async def test_the_error_of_the_cell_that_deletes_is_shown(k: Client, cell: str) -> None:
    delete = "[names.pop(name) for name in list(names) if name != 'SystemExit']"
    failed = await k.run(f"import builtins; kept, names = SystemExit, vars(builtins)\n{cell.format(del_=delete)}")
    assert failed.error == ("SystemExit" if "kept" in cell else "ZeroDivisionError")
    assert failed.messages("error")[0].content["traceback"]
    assert (await k.run("vars(builtins).clear(); 1 / 0")).error  # of the cell, or the missing name
    assert (await k.run("len([1, 2])")).result == "2"


async def test_a_replaced_builtin_stays(k: Client) -> None:
    await k.run("import builtins; builtins.help = None; builtins.mine = 7")
    assert (await k.run("help is None, mine")).result == "(True, 7)"


async def test_the_policy_of_imports_is_back_too(k: Client) -> None:
    """The policy replaces a builtin before the first cell, as this one does."""
    await k.run(
        "from kernelsvc.guest import import_policy\nimport builtins\nimport_policy.install(None, ['subprocess'])\n"
        "del builtins.__import__"
    )
    assert (await k.run("import subprocess")).error == "ImportNotAllowed"
