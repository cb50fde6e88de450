"""Routes of E2B's templates: which handler a path has."""

from __future__ import annotations

import re

import pytest

from kernelsvc.server.e2b import templates, unsupported

HASH = "0" * 64


@pytest.mark.parametrize(
    ("path", "handler"),
    [
        ("/templates/aliases/base", templates.TemplateAliasHandler),
        ("/v3/templates", templates.BuildRequestHandler),
        (f"/templates/mine/files/{HASH}", templates.UploadAddressHandler),
        (f"/templates/mine/uploads/{HASH}", templates.UploadHandler),
        (f"/templates/mine/uploads/a1b2c3-{HASH}", templates.UploadHandler),
        ("/v2/templates/mine/builds/0-1", templates.BuildStartHandler),
        ("/templates/mine/builds/0-1/status", templates.BuildStatusHandler),
        ("/templates/mine/uploads", unsupported.TemplatesHandler),
        ("/templates/tags", unsupported.TemplatesHandler),
    ],
)
def test_a_path_has_one_handler(path: str, handler: type) -> None:
    found = [each for pattern, each in [*templates.ROUTES, *unsupported.ROUTES] if re.fullmatch(pattern, path)]
    assert found[0] is handler
