"""Cells that are Python already: IPython's transformers would hand them back as they are.

For each cell IPython strips prompts and indents, tokenizes, looks for magics, shell
commands and questions, and asks seven checkers about a single line: a sixth of what a
trivial cell costs. All of that looks for something that stands out. What has nothing
of it, by rules that are stricter than IPython's own, is passed over; for anything
else, and whenever somebody has changed the transformers, IPython decides.
"""

from __future__ import annotations

import re
from typing import Any

from IPython.core.autocall import IPyAutocall
from IPython.core.macro import Macro

#: What some transformer might act on: a sign of a magic, shell command or question anywhere, a control character, a
#: line's end of another kind, a prompt or a quoting sign where a line begins, a line of nothing but blanks.
_TELLING = re.compile(
    r"[?!%\x00-\x08\v\f\r\x0e-\x1f\x7f-\x9f\u2028\u2029]"
    r"|^\s*(?:[,;/]|>>>|\.\.\.|In \[|\[nav|\[ins)|^[^\S\n]+$",
    re.MULTILINE,
)
#: The word at a line's beginning, as IPython cuts it out.
_WORD = re.compile(r"[\w.*]*")


class PlainCellDetector:
    """Knows a shell's transformers as they were, and so whether they are still the ones that these rules know.

    Args:
        shell: IPython's, complete; nobody else has had it.
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
        """Whether ``transform_cell`` would give the cell as it is, with a line's end if it has none."""
        if not cell or cell[0].isspace() or _TELLING.search(cell) or self._transformers() != self._known:
            return False
        end = cell.find("\n")
        return 0 <= end < len(cell) - 1 or self._is_plain_line(cell)

    def _is_plain_line(self, line: str) -> bool:
        """Whether its first word is nothing that is called by being named: a magic, a macro, ``exit``."""
        shell, word = self._shell, _WORD.match(line)
        if shell.autocall or word is None:
            return False
        name = word.group()
        return not isinstance(shell.user_ns.get(name), Macro | IPyAutocall) and shell.find_magic(name) is None
