"""Display a cell's value: IPython's formatters and display hook, called only when they can make a difference.

For a number IPython calls eleven formatters, parses the cell again to see whether it ends with a semicolon, and cleans
plain text. These steps still run for values and cells where they can change the result.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQDisplayPublisher
from IPython.core.formatters import DisplayFormatter
from IPython.lib import pretty

from kernelsvc.guest.model_view import values
from kernelsvc.guest.model_view.collections import SHORT as _LONG

#: Values that have only a plain-text form, unless user code registered another one for their type.
_PLAIN_TYPES = frozenset((int, float, str, bool, complex, type(None)))
_WITH_BASES = _PLAIN_TYPES | {object}
#: Of these, the types that IPython prints by ``repr``. A float goes through ``%precision``.
_REPR_TYPES = frozenset((int, bool, str, type(None)))
#: An integer of more bits can be long as text. Python refuses to convert one beyond a limit, and IPython shows that
#: error.
_MOST_BITS = 4096
_repr = pretty._repr_pprint
#: Bytes of code between the instruction that displays a value and the end, when nothing else follows in its cell.
_LAST_BYTES = 10
#: Settings of ``ast_node_interactivity`` with which only the last value of a cell is displayed.
_ONLY_THE_LAST = frozenset(("last_expr", "last_expr_or_assign"))
#: Shortest text that can be a copy of plotly.js, which has 4.8 million characters.
_LIBRARY_LENGTH = 1_000_000
#: Modules whose callbacks after a cell take no time when there is no figure to draw.
_QUICK = ("IPython.", "matplotlib")


def _add_form(value: Any, data: dict[str, Any]) -> None:
    """Add a value's form for a model to its MIME bundle, if it has one."""
    form = values.form(value, data)
    if form is not None:
        data[values.MIME] = form


class SelectiveFormatter(DisplayFormatter):  # type: ignore[misc]
    """Calls the other ten formatters for a number only if one of them has a form for it."""

    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``DisplayFormatter.format``."""
        if type(obj) in _PLAIN_TYPES and not include and not exclude and not self._knows_plain():
            plain = self.formatters["text/plain"]
            text = repr(obj) if _is_its_repr(obj, plain) else plain(obj)
            found = {} if text is None else {"text/plain": text}
            if type(obj) is str and len(obj) > _LONG:
                _add_form(obj, found)
            return found, {}
        data, metadata = super().format(obj, include, exclude)
        if data and not include and not exclude:
            _add_form(obj, data)
        return data, metadata

    def _knows_plain(self) -> bool:
        """Whether user code registered a form for a plain type: by type, by name or for one value."""
        others = [f for name, f in self.formatters.items() if name != "text/plain"]
        for one in (*others, self.ipython_display_formatter, self.mimebundle_formatter):
            known = one._trait_values  # Its traits as stored, without a lookup for each.
            printers, deferred = known.get("type_printers"), known.get("deferred_printers")
            if printers and not _WITH_BASES.isdisjoint(printers):
                return True
            if known.get("singleton_printers") or (deferred and any(module == "builtins" for module, _ in deferred)):
                return True
        return False


def _is_its_repr(obj: Any, plain: Any) -> bool:
    """Whether IPython would print exactly ``repr(obj)``: its type and the object have no other printer."""
    if isinstance(obj, int) and obj.bit_length() > _MOST_BITS:
        return False
    known = plain._trait_values
    types, singles, later = (known.get(f"{kind}_printers") for kind in ("type", "singleton", "deferred"))
    if type(obj) not in _REPR_TYPES or None in (types, singles, later):
        return False
    if any(types.get(each, _repr) is not _repr for each in type(obj).__mro__):
        return False
    return singles.get(id(obj), _repr) is _repr and not any(module == "builtins" for module, _ in later)


def _is_plotly_library(html: object) -> bool:
    """Whether HTML is the copy of plotly.js that Plotly displays before its first chart."""
    return type(html) is str and len(html) > _LIBRARY_LENGTH and "plotly.js v" in html[:_LIBRARY_LENGTH]


class DisplayPublisher(ZMQDisplayPublisher):  # type: ignore[misc]
    """Publishes displayed values, also those that a library made into a MIME bundle itself."""

    def publish(self, data: dict[str, Any], metadata: dict[str, Any] | None = None, **options: Any) -> None:
        """See ``ZMQDisplayPublisher.publish``. For a model, Plotly's library is left out: a chart has its data."""
        if self.shell.for_model and type(data) is dict and _is_plotly_library(data.get("text/html")):
            return
        if type(data) is dict and values.MIME not in data:
            form = values.form_of_bundle(data)
            if form is not None:
                data = {**data, values.MIME: form}
        super().publish(data, metadata, **options)


class DisplayHook(ZMQShellDisplayHook):  # type: ignore[misc]
    """Displays a cell's value. The last message is sent together with the reply that follows."""

    def quiet(self) -> bool:
        """Whether the cell ends with a semicolon. The tokenizer runs only if the cell has one."""
        try:
            cell = self.shell.history_manager.input_hist_parsed[-1]
        except IndexError:
            return False
        return ";" in cell and bool(self.semicolon_at_end_of_expression(cell))

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        """Put the forms into the message. Plain text needs no cleaning."""
        if self.msg and len(format_dict) == 1 and type(format_dict.get("text/plain")) is str:
            content = self.msg["content"]
            content["data"], content["metadata"] = dict(format_dict), md_dict
        else:
            super().write_format_data(format_dict, md_dict)

    def finish_displayhook(self) -> None:
        """Send the message, or hold it for the reply if it ends the cell's code."""
        session = self.session
        session.hold_next = self._is_last(sys._getframe(2))
        try:
            with self.shell.kernel.streams.in_place():
                super().finish_displayhook()
        finally:
            session.hold_next = False

    def _is_last(self, cell: FrameType) -> bool:
        """Whether nothing that can take time follows in the cell or in hooks after it."""
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
