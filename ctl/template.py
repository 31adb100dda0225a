"""Docker's `--format`: the part of Go's templates that lists of things use.

    {{.ID}}  {{.Label "key"}}  {{json .}}  {{json .Labels}}  {{upper .Names}}  {{lower .Names}}

`\\t` and `\\n` in the text are a tab and a line's end. A leading `table ` makes columns of what
tabs separate, below a header.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.output import json_text, table, visible

Row = Mapping[str, Any]
Render = Callable[[Row], str]
# name -> (header, value): the fields of one kind of row, as docker calls them.
Fields = Mapping[str, tuple[str, Render]]


# Docker's own numbers: tabwriter.NewWriter(…, 10, 1, 3, ' ', 0).
_MIN_WIDTH, _PADDING = 10, 3
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_LABEL = re.compile(r'\.Label\s+"([^"]*)"')
_FUNCTIONS: dict[str, Callable[[str], str]] = {
    "json": json_text,
    "upper": lambda text: visible(text.upper()),
    "lower": lambda text: visible(text.lower()),
}
_ESCAPES = {"\\t": "\t", "\\n": "\n", "\\\\": "\\"}


class Template:
    """One parsed `--format`. Raises grammar.UsageError for what it does not know."""

    def __init__(self, text: str, fields: Fields) -> None:
        self._fields = fields
        self._is_table = text.startswith("table ")
        self._text = text
        self._parts: list[str | tuple[str, Render]] = []
        body = text.removeprefix("table ").strip() if self._is_table else text
        at = 0
        for action in _ACTION.finditer(body):
            self._add_text(body[at : action.start()])
            self._parts.append(self._parse(action[1]))
            at = action.end()
        self._add_text(body[at:])

    def _add_text(self, text: str) -> None:
        if "{{" in text:
            raise grammar.UsageError(f"--format {self._text!r}: a {{{{ is not closed")
        self._parts.append(re.sub(r"\\[tn\\]", lambda found: _ESCAPES[found[0]], text))

    def _parse(self, action: str) -> tuple[str, Render]:
        if action == "json .":
            return "", self._object
        function, _, argument = action.partition(" ")
        if function in _FUNCTIONS:
            header, render = self._value(argument.strip(), action)
            apply = _FUNCTIONS[function]
            return header, lambda row: apply(render(row))
        header, render = self._value(action, action)
        return header, lambda row: visible(render(row))

    def _value(self, word: str, action: str) -> tuple[str, Render]:
        label = _LABEL.fullmatch(word)
        if label is not None:
            key = label[1]
            return key.upper(), lambda row: str((row.get("labels") or {}).get(key, ""))
        found = self._fields.get(word.removeprefix(".")) if word.startswith(".") else None
        if found is None:
            known = " ".join(f".{name}" for name in self._fields)
            raise grammar.UsageError(f"--format: {{{{{action}}}}} is not known; there are {known}")
        return found

    def _object(self, row: Row) -> str:
        values = {name: render(row) for name, (_header, render) in self._fields.items()}
        return json_text(values)

    def print(self, rows: Sequence[Row]) -> None:
        """A line for each row; as a table, the header first."""
        lines = [self._line(row) for row in rows]
        if self._is_table:
            header = self._header().split("\t")
            table(
                header,
                [line.split("\t") for line in lines],
                min_width=_MIN_WIDTH,
                padding=_PADDING,
            )
        else:
            for line in lines:
                print(line)

    def _line(self, row: Row) -> str:
        return "".join(part if isinstance(part, str) else part[1](row) for part in self._parts)

    def _header(self) -> str:
        return "".join(part if isinstance(part, str) else part[0] for part in self._parts)
