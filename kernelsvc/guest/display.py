"""How a cell's value is shown: IPython's formatters and its display hook, asked no more than they need be.

For a plain number IPython asks eleven formatters, parses the cell anew to see
whether it ends with a semicolon, and cleans what is plain text already. All of
that stays, for values and cells for which it can make a difference.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from IPython.core.formatters import DisplayFormatter
from IPython.lib import pretty

#: Values that have one form only, unless somebody registered another for their type.
_PLAIN_TYPES = frozenset((int, float, str, bool, complex, type(None)))
_WITH_BASES = _PLAIN_TYPES | {object}
#: Of them, those that IPython prints by their ``repr``: a float goes through ``%precision``.
_REPR_TYPES = frozenset((int, bool, str, type(None)))
#: A number of so many bits can be long in text; beyond a limit Python refuses to write it, and IPython shows that.
_MOST_BITS = 4096
_repr = pretty._repr_pprint
#: Bytes of code from the instruction that shows a value to the end, when nothing else follows in its cell.
_LAST_BYTES = 10
#: Settings of ``ast_node_interactivity`` with which only a cell's last value is shown.
_ONLY_THE_LAST = frozenset(("last_expr", "last_expr_or_assign"))
#: Modules whose callbacks after a cell take no time, when there is no figure to draw.
_QUICK = ("IPython.", "matplotlib")


class SelectiveFormatter(DisplayFormatter):  # type: ignore[misc]
    """Asks eleven formatters about a number only if one of them may know more than its text."""

    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """As IPython's."""
        if type(obj) in _PLAIN_TYPES and not include and not exclude and not self._knows_plain():
            plain = self.formatters["text/plain"]
            text = repr(obj) if _is_its_repr(obj, plain) else plain(obj)
            return ({} if text is None else {"text/plain": text}), {}
        found: tuple[dict[str, Any], dict[str, Any]] = super().format(obj, include, exclude)
        return found

    def _knows_plain(self) -> bool:
        """Whether a form was registered for a plain type, by type, by name or for one value."""
        others = [f for name, f in self.formatters.items() if name != "text/plain"]
        for one in (*others, self.ipython_display_formatter, self.mimebundle_formatter):
            known = one._trait_values  # its traits, without asking each for its value
            printers, deferred = known.get("type_printers"), known.get("deferred_printers")
            if printers and not _WITH_BASES.isdisjoint(printers):
                return True
            if known.get("singleton_printers") or (deferred and any(module == "builtins" for module, _ in deferred)):
                return True
        return False


def _is_its_repr(obj: Any, plain: Any) -> bool:
    """Whether IPython's printer would write just ``repr``: nobody registered another for its type, or for itself."""
    if isinstance(obj, int) and obj.bit_length() > _MOST_BITS:
        return False
    known = plain._trait_values
    types, singles, later = (known.get(f"{kind}_printers") for kind in ("type", "singleton", "deferred"))
    if type(obj) not in _REPR_TYPES or None in (types, singles, later):
        return False
    if any(types.get(each, _repr) is not _repr for each in type(obj).__mro__):
        return False
    return singles.get(id(obj), _repr) is _repr and not any(module == "builtins" for module, _ in later)


class DisplayHook(ZMQShellDisplayHook):  # type: ignore[misc]
    """Shows a cell's value; the last one goes out with the reply that is about to follow."""

    def quiet(self) -> bool:
        """Whether the cell ends with a semicolon; the tokenizer is asked only if there is one."""
        try:
            cell = self.shell.history_manager.input_hist_parsed[-1]
        except IndexError:
            return False
        return ";" in cell and bool(self.semicolon_at_end_of_expression(cell))

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        """Put the forms into the message; text is clean as it is."""
        if self.msg and len(format_dict) == 1 and type(format_dict.get("text/plain")) is str:
            content = self.msg["content"]
            content["data"], content["metadata"] = dict(format_dict), md_dict
        else:
            super().write_format_data(format_dict, md_dict)

    def finish_displayhook(self) -> None:
        """Send it; or hold it back for the moment until the reply, if nothing of the cell is left to run."""
        session = self.session
        session.holds = self._is_last(sys._getframe(2))
        try:
            super().finish_displayhook()
        finally:
            session.holds = False

    def _is_last(self, cell: FrameType) -> bool:
        """Whether nothing that may take time follows in the cell, or is done after it."""
        if len(cell.f_code.co_code) - cell.f_lasti > _LAST_BYTES:
            return False
        shell = self.shell
        if shell.ast_node_interactivity not in _ONLY_THE_LAST:
            return False
        callbacks = shell.events.callbacks
        after = (*callbacks["post_execute"], *callbacks["post_run_cell"])
        figures = sys.modules.get("matplotlib._pylab_helpers")
        drawn = figures is not None and bool(figures.Gcf.figs)
        return not drawn and all(str(getattr(each, "__module__", "")).startswith(_QUICK) for each in after)
