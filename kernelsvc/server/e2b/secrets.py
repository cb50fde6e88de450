"""E2B's secrets: those of the setting ``secrets``, which the egress proxy adds to requests. Names only, no value.

The operator makes and changes them, since a value is in no process but the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from kernelsvc.errors import BadRequest, NotFound, NotSupported
from kernelsvc.model.network.secrets import SecretSource
from kernelsvc.server.e2b.handler import E2bHandler

#: Prefix of a secret's id, and most secrets on a page.
PREFIX, MAX_PAGE = "sec_", 100
#: The times of a setting are not known.
_EPOCH = "1970-01-01T00:00:00Z"


def secret_model(name: str, source: SecretSource) -> dict[str, Any]:
    """Return a secret in E2B's format. Its metadata says for which hosts it is."""
    return {
        "secretID": f"{PREFIX}{name}",
        "name": name,
        "currentVersion": 1,
        "metadata": {"hosts": " ".join(source.hosts)},
        "createdAt": _EPOCH,
        "updatedAt": _EPOCH,
    }


def page(names: Mapping[str, Any], limit: str, after: str) -> tuple[list[str], str | None]:
    """Return the names on a page, and the token of the next one.

    >>> page({"b": 1, "a": 1, "c": 1}, "2", ""), page({"b": 1, "a": 1, "c": 1}, "2", "b")
    ((['a', 'b'], 'b'), (['c'], None))

    Raises:
        BadRequest: The limit is no number from 1 to 100.
    """
    if not limit.isdecimal() or not 0 < int(limit[:9]) <= MAX_PAGE:
        raise BadRequest(f"limit must be a number from 1 to {MAX_PAGE}.")
    found = sorted(name for name in names if name > after)
    shown = found[: int(limit)]
    return shown, shown[-1] if len(found) > len(shown) else None


class SecretHandler(E2bHandler):
    """Base of the handlers of secrets."""

    route = "/secrets"

    def _refuse(self, *_: str, **__: str) -> None:
        raise NotSupported(
            "Secrets are those of the server's operator, in the setting [secrets.NAME]. Pass values of your own to "
            "create() or run_code() as envs."
        )


class SecretsHandler(SecretHandler):
    """Handler of ``/secrets``."""

    async def get(self) -> None:
        """List a page of the secrets."""
        known = self.context.settings.secrets
        limit, after = (
            self.get_query_argument(name, default) for name, default in (("limit", "100"), ("nextToken", ""))
        )
        shown, following = page(known, limit, after)
        if following is not None:
            self.set_header("x-next-token", following)
        self.answer([secret_model(name, known[name]) for name in shown])

    post = SecretHandler._refuse


class SecretDetailHandler(SecretHandler):
    """Handler of ``/secrets/{id}``."""

    async def get(self, secret: str) -> None:
        """Describe a secret by its id or its name."""
        known = self.context.settings.secrets
        for name in (unquote(secret), unquote(secret).removeprefix(PREFIX)):
            if name in known:
                self.answer(secret_model(name, known[name]))
                return
        raise NotFound("There is no secret of this name. The server's operator names them in [secrets.NAME].")

    post = delete = SecretHandler._refuse


ROUTES: list[tuple[str, Any]] = [
    (r"/secrets", SecretsHandler),
    (r"/secrets/(?P<secret>[^/]+)", SecretDetailHandler),
]
