"""Count turns of phrase that are hard to read, per 1,000 words, in Markdown pages, docstrings and messages.

    python scripts/prose.py README.md docs             Markdown pages (generated pages are left out)
    python scripts/prose.py kernelsvc                  docstrings, and messages of errors and log lines
    python scripts/prose.py --list docs                also print where each hit is

A directory is searched for ``.md`` and ``.py`` files. Each kind of text has its own counts. The exit status is 1 if a
count is over its bar. Code blocks, inline code, comments and link targets of a page are not prose and are not counted.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: First line of a page that docs/generate.py writes. Its words are docstrings, which are counted where they stand.
GENERATED = "<!-- Written by docs/generate.py"
#: Nodes that may have a docstring.
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
#: Methods of a logger that take a message.
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}


@dataclass(frozen=True)
class Rule:
    """One turn of phrase.

    Attributes:
        name: Printed in the report.
        pattern: Matches one occurrence.
        bar: Occurrences allowed in 1,000 words.
    """

    name: str
    pattern: re.Pattern[str]
    bar: float


_WHAT = (
    "is|was|has|had|does|did|can|may|must|should|would|will|needs|wants|came|comes|follows|goes|waits|runs|a|the|it"
    "|its|this|an|one|they|we|somebody|nobody|others"
)
_TOLD = "told|made|kept|given|held|seen|heard|said|asked|taken|left|written|ended|begun"

RULES = (
    Rule("what-clause", re.compile(rf"\bwhat (?:{_WHAT})\b", re.IGNORECASE), 1),
    Rule("nobody/somebody/whoever", re.compile(r"\b(?:nobody|somebody|whoever)\b", re.IGNORECASE), 0),
    Rule("semicolon", re.compile(";"), 4),
    Rule("anew/beside/of ours/goes on/for ever/at once", re.compile(
        r"\b(?:anew|beside|of ours|goes? on|for ever|at once)\b", re.IGNORECASE), 0.5),
    Rule("is told/made/kept/given ...", re.compile(rf"\b(?:is|are|was|were|be|been) (?:{_TOLD})\b"), 1),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A piece of prose.

    Attributes:
        kind: "Markdown", "docstrings" or "messages".
        path: The file that holds it.
        line: Its first line, from 1.
        text: The words. Lines correspond to lines of the file.
    """

    kind: str
    path: Path
    line: int
    text: str


@dataclass(frozen=True)
class Hit:
    """One occurrence of a rule: where it is, and the words around it."""

    rule: Rule
    path: Path
    line: int
    words: str


def markdown(path: Path, page: str) -> Iterator[Text]:
    """Yield the prose of a page. Code, comments and link targets are blanked, so that line numbers stay."""
    if page.startswith(GENERATED):
        return
    for pattern in (r"^ *(```+).*?^ *\1 *$", r"<!--.*?-->", r"`[^`\n]+(?:\n[^`\n]+)?`", r"\]\([^)]*\)", r"&\w+;"):
        page = re.sub(pattern, _blank, page, flags=re.MULTILINE | re.DOTALL)
    yield Text("Markdown", path, 1, page)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n") or " "


def python(path: Path, source: str) -> Iterator[Text]:
    """Yield the docstrings of a module, and the string literals of its errors and log lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)) is not None:
            yield Text("docstrings", path, node.body[0].lineno, text)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from _literals(path, node.exc)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOG_METHODS:
            yield from _literals(path, node)


def _literals(path: Path, call: ast.Call) -> Iterator[Text]:
    for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
        for node in ast.walk(argument):
            # A format string's parts are literals too, so that f"a {b} c" counts as two.
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield Text("messages", path, node.lineno, node.value)


def texts(paths: Sequence[Path]) -> Iterator[Text]:
    """Yield all prose below these files and directories.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        for each in found:
            if each.suffix == ".md":
                yield from markdown(each, each.read_text("utf-8"))
            elif each.suffix == ".py":
                yield from python(each, each.read_text("utf-8"))


def hits(text: Text) -> Iterator[Hit]:
    """Yield each occurrence of each rule in a text."""
    for rule in RULES:
        for match in rule.pattern.finditer(text.text):
            line = text.line + text.text.count("\n", 0, match.start())
            around = text.text[max(0, match.start() - 30) : match.end() + 30]
            yield Hit(rule, text.path, line, " ".join(around.split()))


def report(found: Sequence[Text], *, locations: bool) -> tuple[list[str], bool]:
    """Return the lines to print, and whether every count is within its bar."""
    lines, good = [], True
    for kind in sorted({text.kind for text in found}):
        of_kind = [text for text in found if text.kind == kind]
        words = sum(len(text.text.split()) for text in of_kind) or 1
        all_hits = [hit for text in of_kind for hit in hits(text)]
        lines.append(f"{kind}: {words:,} words")
        for rule in RULES:
            matching = [hit for hit in all_hits if hit.rule is rule]
            rate = 1000 * len(matching) / words
            good &= rate <= rule.bar
            mark = "" if rate <= rule.bar else "  OVER"
            lines.append(f"  {rate:6.2f}  (at most {rule.bar:g})  {rule.name}{mark}")
            if locations:
                lines += [f"          {hit.path}:{hit.line}: {hit.words}" for hit in matching]
    return lines, good


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts. Return 1 if a count is over its bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file or directory")
    parser.add_argument("--list", action="store_true", help="print where each hit is")
    parser.add_argument("--only", metavar="KIND", help="count only Markdown, docstrings or messages")
    options = parser.parse_args(arguments)
    found = [text for text in texts(options.paths) if options.only in (None, text.kind)]
    lines, good = report(found, locations=options.list)
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
