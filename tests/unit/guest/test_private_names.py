"""Every private name of IPython and ipykernel that the guest uses: an upgrade without one fails here."""

from __future__ import annotations

import inspect

import private_names
import pytest
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelbase import _accepts_parameters

#: Of the classes that the guest's own classes inherit from.
INHERITED = {
    "IPython": {
        ("IPython.core.interactiveshell.InteractiveShell", "_tee"),
    },
    "ipykernel": {
        ("ipykernel.ipkernel.IPythonKernel", "_allow_stdin"),
        ("ipykernel.ipkernel.IPythonKernel", "_cancel_on_sigint"),
        ("ipykernel.ipkernel.IPythonKernel", "_forward_input"),
        ("ipykernel.ipkernel.IPythonKernel", "_restore_input"),
        ("ipykernel.kernelbase.Kernel", "_abort_queues"),
        ("ipykernel.kernelbase.Kernel", "_execute_sleep"),
        ("ipykernel.kernelbase.Kernel", "_input_request"),
        ("ipykernel.kernelbase.Kernel", "_supports_kernel_subshells"),
        ("ipykernel.zmqshell.ZMQInteractiveShell", "_default_exiter"),
        ("ipykernel.zmqshell.ZMQInteractiveShell", "_update_exit_now"),
    },
}
#: Of other objects. Some names are of both libraries.
ELSEWHERE = {
    ("IPython.lib.pretty", "_repr_pprint"),
    ("ipykernel.debugger", "_is_debugpy_available"),
    ("ipykernel.debugger.Debugger", "_handle_event"),
    ("ipykernel.debugger.Debugger", "_removed_cleanup"),
    ("ipykernel.kernelbase.Kernel", "_stderr"),
    ("ipykernel.kernelbase.Kernel", "_stdout"),
    ("ipykernel.zmqshell.ZMQInteractiveShell", "_last_traceback"),
    ("ipykernel.zmqshell.ZMQInteractiveShell", "_last_traceback_during_displayhook"),
}


def test_the_installed_libraries_have_every_private_name_that_the_guest_uses() -> None:
    assert private_names.missing(ELSEWHERE.union(*INHERITED.values())) == set()


@pytest.mark.parametrize("library", INHERITED)
def test_the_table_lists_exactly_the_private_names_that_the_guest_inherits(library: str) -> None:
    assert private_names.inherited("kernelsvc.guest", library) == INHERITED[library]


def test_the_table_lists_exactly_the_private_names_that_the_guest_uses_elsewhere() -> None:
    found = set().union(*(private_names.elsewhere("kernelsvc.guest", library) for library in INHERITED))
    # An attribute of instances of IPython's CachingCompiler. The guest does without it where it is missing.
    assert found - {"_filename_map"} == {name for _, name in ELSEWHERE}


def test_ipykernel_asks_for_the_signature_that_the_guest_caches() -> None:
    """``make_kernel`` sets ``run_cell_async.__signature__``: without it each cell pays for ``inspect.signature``."""
    assert "_accepts_parameters(run_cell" in inspect.getsource(IPythonKernel.do_execute)
    assert "signature(" in inspect.getsource(_accepts_parameters)


def test_ipykernel_imports_the_name_that_the_guest_puts_in_place_of_its_debugger() -> None:
    """``kernelsvc.guest.ipython`` puts a module of its own in ``sys.modules``, so its existence proves nothing."""
    assert "from .debugger import _is_debugpy_available" in inspect.getsource(IPythonKernel)
