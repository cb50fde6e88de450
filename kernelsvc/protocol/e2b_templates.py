"""Recipes of E2B's template builder: what a build asks for, and what can't be had here. Functions of values."""

from __future__ import annotations

import posixpath
import re
import shlex
import sys
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, NotSupported

#: The directory whose files a template keeps.
HOME = "/home/user"
#: Names of a template and of the environment of its packages, as ``kernelsvc env`` takes them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{1,128}")
#: Images that stand for the default template.
_BASES = frozenset({"e2bdev/base", "e2bdev/code-interpreter"})
_PYTHON = re.compile(r"(?:(?P<version>\d+(?:\.\d+){0,2})(?:-.*)?|latest|slim.*)?")
#: Most steps of a build, arguments of them together, characters of one, and of all. A build keeps them until its end,
#: and each ENV copies the variables before it.
MAX_STEPS, MAX_ARGUMENTS, MAX_COMMAND, MAX_RECIPE = 1000, 10_000, 100_000, 1024 * 1024


class BuildStep(msgspec.Struct, kw_only=True):
    """One step: RUN, COPY, ENV, WORKDIR or USER, with its arguments."""

    type: str
    args: list[str] = []
    filesHash: str | None = None
    force: bool = False


class BuildRequest(msgspec.Struct, kw_only=True):
    """``POST /v2/templates/{id}/builds/{id}``. Unknown fields are ignored, so that newer clients work."""

    fromImage: str | None = None
    fromTemplate: str | None = None
    fromImageRegistry: Any = None
    steps: list[BuildStep] = []
    startCmd: str = ""
    readyCmd: str = ""


class BuiltTemplate(msgspec.Struct, kw_only=True, frozen=True):
    """A template that was built.

    Attributes:
        environment: name of the server's template that it is based on. None: the default one.
        env: environment variables of its sandboxes.
        workdir: where its start command runs, absolute.
        start: command that runs in each sandbox from its beginning. "" for none.
        ready: command that succeeds once the start command serves. "" for none.
        home: whether it has files.
    """

    environment: str | None = None
    env: dict[str, str] = {}
    workdir: str = HOME
    start: str = ""
    ready: str = ""
    home: bool = False


def template_name(name: object) -> str:
    """Return a template's name without its tag.

    Raises:
        BadRequest: It is no name.
    """
    plain = name.partition(":")[0] if isinstance(name, str) else ""
    if not _NAME.fullmatch(plain):
        raise BadRequest("A template's name has letters, digits, '.', '_' and '-', at most 64 in all.")
    return plain


def check_upload(template: str, digest: str) -> None:
    """Check the names of a template and of the archive of a step.

    Raises:
        BadRequest: One has another form.
    """
    template_name(template)
    if not _HASH.fullmatch(digest):
        raise BadRequest("The hash of a step's files has hexadecimal digits.")


def python_of(image: str | None) -> str:
    """Return the version of Python that a base image asks for, "" for the default one.

    >>> python_of("python:3.12-slim"), python_of("python:3"), python_of("e2bdev/base:latest")
    ('3.12', '', '')

    Raises:
        NotSupported: It is another Docker image.
    """
    name, _, tag = (image or "e2bdev/base").removeprefix("docker.io/").removeprefix("library/").partition(":")
    found = _PYTHON.fullmatch(tag)
    if name == "python" and found is not None:
        version = found["version"] or ""
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        return "" if version == "3" or version == own or version.startswith(f"{own}.") else version
    if name in _BASES:
        return ""
    raise NotSupported(
        f"The Docker image {image!r} can't be used: sandboxes are processes of this machine, and see its programs. "
        "Begin with from_base_image(), from_python_image() or from_template() with a template of this server."
    )


def decode(asked: object) -> BuildRequest:
    """Decode a build, and check that it can be had.

    Raises:
        BadRequest: It has another form.
        NotSupported: A step or the image can't be had.
    """
    try:
        wanted = msgspec.convert(asked, BuildRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The build can't be read: {error}.") from None
    if wanted.fromImageRegistry:
        raise NotSupported("Images of registries can't be used. Begin with from_base_image() or from_template().")
    python_of(wanted.fromImage)
    sizes = [*map(len, (arg for step in wanted.steps for arg in step.args)), len(wanted.startCmd), len(wanted.readyCmd)]
    if len(wanted.steps) > MAX_STEPS or len(sizes) > MAX_ARGUMENTS:
        raise BadRequest(f"A build has at most {MAX_STEPS} steps, and {MAX_ARGUMENTS} arguments in all. Use a script.")
    if max(sizes) > MAX_COMMAND or sum(sizes) > MAX_RECIPE:
        raise BadRequest(
            f"A build has at most {MAX_COMMAND} characters in an argument or a command, and {MAX_RECIPE} in all. "
            "Upload a file instead."
        )
    for step in wanted.steps:
        least = {"RUN": 1, "COPY": 2, "ENV": 2, "WORKDIR": 1, "USER": 1}.get(step.type)
        if least is None:
            raise NotSupported(f"The step {step.type!r} can't be had. There are RUN, COPY, ENV, WORKDIR and USER.")
        if len(step.args) < least or (step.type == "COPY" and not _HASH.fullmatch(step.filesHash or "")):
            raise BadRequest(f"The step {step.type} lacks arguments.")
    return wanted


def packages_of(command: str) -> list[str]:
    """Return the requirements that a command installs, if it is no more than ``pip install REQUIREMENT...``.

    >>> packages_of("pip install --user polars==1.0 'six>1'"), packages_of("pip install ."), packages_of("pip list")
    (['polars==1.0', 'six>1'], [], [])
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    if words[:2] != ["pip", "install"] or re.search(r"[;&|`$\n]", command):
        return []
    wanted = [word for word in words[2:] if word != "--user"]
    return wanted if all(re.match(r"[A-Za-z0-9]", word) and "/" not in word for word in wanted) else []


def place(path: str, workdir: str) -> str:
    """Return the absolute path that a step means. It lies in the home directory, whose files a template keeps.

    Raises:
        NotSupported: It lies elsewhere.
    """
    rest = path.removeprefix("~/") if path != "~" else ""
    whole = posixpath.normpath(posixpath.join(HOME if path.startswith("~") else workdir, rest))
    if whole != HOME and not whole.startswith(f"{HOME}/"):
        raise NotSupported(f"A template has files below {HOME} only, not at {whole[:200]!r}. Choose a path there.")
    return whole
