"""E2B's Python SDK, unmodified: secrets of the operator. Arguments: address, token. Says "ok"."""

import os
import sys

ADDRESS, TOKEN = sys.argv[1:]
os.environ |= {"E2B_API_KEY": TOKEN, "E2B_API_URL": ADDRESS, "E2B_SANDBOX_URL": ADDRESS}

from e2b import Sandbox, Secret  # noqa: E402
from e2b.exceptions import SandboxException, SecretException, SecretNotFoundException  # noqa: E402


def refused(call, error):
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


pages = Secret.list(limit=1)
assert [each.name for each in pages.next_items()] == ["first"]
assert [each.secret_id for each in pages.next_items()] == ["sec_models"]
assert not pages.has_next
info = Secret.get_info("models")
assert (info, Secret.get_info(info.secret_id).metadata) == (info, {"hosts": "api.example.com"})
assert [Secret.exists(name) for name in ("models", "other")] == [True, False]
refused(lambda: Secret.get_info("other"), SecretNotFoundException)
assert "operator" in refused(lambda: Secret.create("mine", "value"), SecretException)
assert "operator" in refused(lambda: Secret.update("models", "value"), SecretException)
assert "operator" in refused(lambda: Secret.destroy("models"), SecretException)
header = {"Authorization": f"Bearer {Secret.fill('models')}"}
rules = {"api.example.com": [{"transform": {"headers": header}}]}
with Sandbox.create(network={"allow_out": ["api.example.com"], "deny_out": ["0.0.0.0/0"], "rules": rules}) as box:
    assert (
        "Name or service not known"
        in box.commands.run("getent hosts pypi.org || echo Name or service not known").stdout
    )
rules = {"other.example.com": [{"transform": {"headers": header}}]}
network = {"allow_out": ["other.example.com"], "deny_out": ["0.0.0.0/0"], "rules": rules}
assert "other.example.com" in refused(lambda: Sandbox.create(network=network), SandboxException)
print("ok")
