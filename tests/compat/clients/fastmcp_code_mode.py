"""FastMCP's own tests of its code mode, with our provider in the place of the two that they use.

A plugin of pytest: environment variables have the address and the token.
"""

import importlib.util
import os

from fastmcp.experimental.transforms import code_mode

from kernelsvc.integrations.fastmcp import SandboxProvider

OWN = code_mode.MontySandboxProvider
# Tests of the limits and the absence of FastMCP's own provider.
OF_MONTY = ("test_monty_provider", "test_code_mode_default_limits")


class Provider(SandboxProvider):
    def __init__(self, **options):
        super().__init__(os.environ["PROVIDER_URL"], os.environ["PROVIDER_TOKEN"])


code_mode.MontySandboxProvider = Provider
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: True if name == "pydantic_monty" else found(name, package)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if hasattr(item.module, "_UnsafeTestSandboxProvider"):
            item.module._UnsafeTestSandboxProvider = Provider
    left_out = [item for item in items if item.name.startswith(OF_MONTY)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
