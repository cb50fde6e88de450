"""Detect cells that are plain Python, which IPython's transformers would return unchanged.

For each cell IPython strips prompts and indentation, tokenizes, looks for magics, shell commands and help requests, and
runs seven checkers on a single line: one sixth of the cost of a trivial cell. A cell without any of these marks, by
rules that are stricter than IPython's own, skips all that. In all other cases, and when user code has changed the
transformers, IPython decides.
"""

from __future__ import annotations

import re
from typing import Any

from IPython.core.autocall import IPyAutocall
from IPython.core.macro import Macro

#: Marks that a transformer may act on: a sign of a magic, shell command or help request, a control character, an
#: unusual line ending, a prompt or an auto-quote sign at the start of a line, a line of blanks.
_SPECIAL = re.compile(
    r"[?!%\x00-\x08\v\f\r\x0e-\x1f\x7f-\x9f\u2028\u2029]"
    r"|^\s*(?:[,;/]|>>>|\.\.\.|In \[|\[nav|\[ins)|^[^\S\n]+$",
    re.MULTILINE,
)
#: The first word of a line, as IPython extracts it.
_WORD = re.compile(r"[\w.*]*")


class PlainCellDetector:
    """Compares a shell's transformers with those that it had at the start, for which the rules hold.

    Args:
        shell: IPython's shell, complete, before any user code has run in it.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._known = self._transformers()

    def _transformers(self) -> list[Any]:
        shell = self._shell
        manager, prefilter = shell.input_transformer_manager, shell.prefilter_manager
        return [
            *manager.cleanup_transforms,
            *manager.line_transforms,
            *manager.token_transformers,
            *shell.input_transformers_post,
            *prefilter.transformers,
            *prefilter.checkers,
        ]

    def is_plain(self, cell: str) -> bool:
        """Whether ``transform_cell`` would return the cell unchanged, apart from a newline at the end."""
        if not cell or cell[0].isspace() or _SPECIAL.search(cell) or self._transformers() != self._known:
            return False
        end = cell.find("\n")
        return 0 <= end < len(cell) - 1 or self._is_plain_line(cell)

    def _is_plain_line(self, line: str) -> bool:
        """Whether the first word is no object that runs when it is named: a magic, a macro, ``exit``."""
        shell, word = self._shell, _WORD.match(line)
        if shell.autocall or word is None:
            return False
        name = word.group()
        return not isinstance(shell.user_ns.get(name), Macro | IPyAutocall) and shell.find_magic(name) is None
