"""Recipes of E2B's template builder."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.protocol import e2b_templates as recipes

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("image", "python"),
    [
        *(
            (image, "")
            for image in (None, "e2bdev/base", "e2bdev/code-interpreter:latest", "python:3", "python:latest")
        ),
        *(
            (image, "")
            for image in ("python", "python:slim-bookworm", "docker.io/library/python:3-slim", f"python:{OWN}.1")
        ),
        ("python:3.8-slim", "3.8"),
        ("library/python:2.7.18", "2.7.18"),
    ],
)
def test_images_that_stand_for_a_python(image: str | None, python: str) -> None:
    assert recipes.python_of(image) == python


@pytest.mark.parametrize("image", ["ubuntu:22.04", "node:lts", "python:3.12;rm", "pythons:3", "e2bdev/other"])
def test_other_images_are_refused_with_the_next_step(image: str) -> None:
    with pytest.raises(NotSupported, match="from_base_image"):
        recipes.decode({"fromImage": image})


@pytest.mark.parametrize(
    ("command", "packages"),
    [
        ("pip install six", ["six"]),
        ("pip install --user 'polars>=1,<2' six[x]==1", ["polars>=1,<2", "six[x]==1"]),
        ("pip install .", []),
        ("pip install -r requirements.txt", []),
        ("pip install --index-url http://x six", []),
        ("pip install git+https://x/y", []),
        ("pip install six && rm -r /", []),
        ("pip install six\nid", []),
        ("pip install $(id)", []),
        ("pip install 'six", []),
        ("pip uninstall six", []),
        ("python -m pip install six", []),
    ],
)
def test_only_plain_requirements_are_packages(command: str, packages: list[str]) -> None:
    assert recipes.packages_of(command) == packages


@pytest.mark.parametrize(
    ("path", "whole"),
    [("a", "/home/user/app/a"), (".", "/home/user/app"), ("/home/user/x/", "/home/user/x"), ("~", "/home/user"),
     ("~/x", "/home/user/x"), ("..", "/home/user")],
)  # fmt: skip
def test_paths_of_steps(path: str, whole: str) -> None:
    assert recipes.place(path, "/home/user/app") == whole


@pytest.mark.parametrize("path", ["/app", "/", "../..", "/home/user/../x", "/home/users", "/tmp/x"])
def test_a_template_has_files_in_the_home_directory_only(path: str) -> None:
    with pytest.raises(NotSupported, match="/home/user"):
        recipes.place(path, "/home/user/app")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"steps": [{"type": "EXPOSE", "args": ["1"]}]}, NotSupported),
        ({"fromImageRegistry": {"type": "aws"}}, NotSupported),
        ({"steps": [{"type": "RUN"}]}, BadRequest),
        ({"steps": [{"type": "COPY", "args": ["a", "b"]}]}, BadRequest),
        ({"steps": [{"type": "COPY", "args": ["a", "b"], "filesHash": "../x"}]}, BadRequest),
        ({"steps": [{"type": "RUN", "args": ["x" * 100_001]}]}, BadRequest),
        ({"steps": [{"type": "USER", "args": ["x"]}] * 1001}, BadRequest),
        ({"steps": [{"type": "ENV", "args": ["a", "b"] * 5001}]}, BadRequest),
        ({"steps": [{"type": "USER", "args": ["x" * 100_000]}] * 11}, BadRequest),
        ({"steps": [], "readyCmd": "x" * 100_001}, BadRequest),
        ({"steps": 7}, BadRequest),
    ],
)
def test_what_can_not_be_had_is_refused(asked: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        recipes.decode(asked)


@pytest.mark.parametrize(("template", "digest"), [("mine", ".."), ("mine", "0A"), ("..", "0a"), ("mine", "")])
def test_an_upload_has_a_plain_place(template: str, digest: str) -> None:
    with pytest.raises(BadRequest):
        recipes.check_upload(template, digest)
    recipes.check_upload("mine", "0a")


def test_names_lose_their_tags() -> None:
    assert recipes.template_name("my-env:v1.0") == "my-env"
    for wrong in ("", ":v1", "a/b", ".files", "-x", "a" * 65, None):
        with pytest.raises(BadRequest):
            recipes.template_name(wrong)
