"""Go's text/template, the part that `docker inspect --format` is used with, over plain JSON values.

    {{.State.Pid}}  {{json .Config.Env}}  {{index .Config.Labels "a.b"}}  {{join .Args " "}}
    {{if .State.Running}}…{{else}}…{{end}}    {{range .Mounts}}…{{end}}    {{with .Task}}…{{end}}
    {{range $key, $value := .Config.Labels}}…{{end}}
    eq ne lt le gt ge and or not len upper lower title split print printf println

A field that is not there is an error, since a word misspelt would otherwise print nothing.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lighter.ctl.output import json_text, visible_lines
from lighter.proto.errors import InvalidArgument

_ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)"""
    r"""|(?P<sign>[()|])|(?P<path>\$?[A-Za-z_0-9]*(?:\.[A-Za-z_0-9]+)*\.?))"""
)
_MAX_DEPTH = 50

Scope = dict[str, Any]
Node = Callable[[Any, Scope], str]


class GoTemplate:
    """One parsed template. Raises InvalidArgument for what it does not understand."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._parts = list(_parts(text))
        self._at = 0
        self._nodes, ended_by = self._block(())
        assert not ended_by

    def render(self, value: Any) -> str:
        """The text for `value`. Raises InvalidArgument for a field that it lacks."""
        return "".join(node(value, {"$": value}) for node in self._nodes)

    def _fail(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"read template {self._text[:200]!r}: {why}")

    def _block(self, ends: Sequence[str], depth: int = 0) -> tuple[list[Node], str]:
        """Nodes up to one of `ends`, and which it was."""
        if depth > _MAX_DEPTH:
            raise self._fail("it is nested too deeply")
        nodes: list[Node] = []
        while self._at < len(self._parts):
            is_action, text = self._parts[self._at]
            self._at += 1
            word = text.split(None, 1)[0] if text.split() else ""
            if not is_action:
                nodes.append(lambda _value, _scope, text=text: text)  # type: ignore[misc]
            elif word in ("end", "else"):
                if word not in ends:
                    raise self._fail(f"unexpected {{{{{text}}}}}")
                return nodes, text
            elif word in ("if", "range", "with"):
                nodes.append(self._control(word, text[len(word) :], depth + 1))
            elif not text.startswith("/*"):
                nodes.append(_printing(_Pipeline(text, self._fail)))
        if ends:
            raise self._fail("an {{end}} is missing")
        return nodes, ""

    def _control(self, word: str, rest: str, depth: int) -> Node:
        names: list[str] = []
        if word == "range" and ":=" in rest:
            before, rest = rest.split(":=", 1)
            names = [name.strip() for name in before.split(",")]
        pipeline = _Pipeline(rest, self._fail)
        yes, ended_by = self._block(("end", "else"), depth)
        no: list[Node] = []
        if ended_by.startswith("else"):
            more = ended_by[4:].strip()
            if more.startswith("if"):
                no = [self._control("if", more[2:], depth + 1)]
            else:
                no, _ = self._block(("end",), depth)

        def run(nodes: Sequence[Node], value: Any, scope: Scope) -> str:
            return "".join(node(value, scope) for node in nodes)

        def control(value: Any, scope: Scope) -> str:
            found = pipeline(value, scope)
            if not _true(found):
                return run(no, value, scope)
            if word == "if":
                return run(yes, value, scope)
            if word == "with":
                return run(yes, found, scope)
            if not isinstance(found, Mapping | list | tuple):
                raise self._fail(f"range: {_shown(found)} is no list and no map")
            pairs = sorted(found.items()) if isinstance(found, Mapping) else list(enumerate(found))
            out = ""
            for key, item in pairs:
                named = dict(zip(names, (key, item) if len(names) > 1 else (item,), strict=False))
                out += run(yes, item, {**scope, **named})
            return out

        return control


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is an action, its text), with the spaces that {{- and -}} take away gone."""
    at, trim = 0, False
    for found in _ACTION.finditer(text):
        plain = text[at : found.start()]
        plain = plain.lstrip() if trim else plain
        yield False, _escapes(plain.rstrip() if found[1] else plain)
        yield True, found[2]
        at, trim = found.end(), bool(found[3])
    rest = text[at:]
    if "{{" in rest:
        raise InvalidArgument(f"read template {text[:200]!r}: a {{{{ is not closed")
    yield False, _escapes(rest.lstrip() if trim else rest)


def _escapes(text: str) -> str:
    """Docker takes these in the plain text, as shells seldom pass the characters on."""
    return text.replace("\\t", "\t").replace("\\n", "\n")


class _Pipeline:
    """`command | command …`, evaluated from left to right."""

    def __init__(self, text: str, fail: Callable[[str], InvalidArgument]) -> None:
        self._fail = fail
        self._text = text.strip()
        self._tokens = self._split(text)
        self._at = 0
        self._run = self._pipeline()
        if self._at < len(self._tokens) or not self._tokens:
            raise fail(f"{self._text!r} is not understood")

    def __call__(self, value: Any, scope: Scope) -> Any:
        return self._run(value, scope)

    def _split(self, text: str) -> list[tuple[str, str]]:
        tokens, at = [], 0
        text = text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None or found.end() == at or found.lastgroup is None:
                raise self._fail(f"{text[at:][:40]!r} is not understood")
            kind, word = found.lastgroup, found[found.lastgroup]
            start = found.start(kind)
            if word.startswith(".") and text[start - 1 : start] == ")":
                kind = "field"  # of what the parentheses are
            tokens.append((kind, word))
            at = found.end()
        return [token for token in tokens if token[1]]

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _pipeline(self) -> Callable[[Any, Scope], Any]:
        steps = [self._command(first=True)]
        while self._peek() == "|":
            self._at += 1
            steps.append(self._command(first=False))

        def run(value: Any, scope: Scope) -> Any:
            found = steps[0](value, scope, ())
            for step in steps[1:]:
                found = step(value, scope, (found,))
            return found

        return run

    def _command(self, *, first: bool) -> Callable[[Any, Scope, tuple[Any, ...]], Any]:
        words: list[Callable[[Any, Scope], Any]] = []
        name = ""
        while self._at < len(self._tokens) and self._peek() not in ("|", ")"):
            kind, text = self._tokens[self._at]
            self._at += 1
            if text == "(":
                words.append(self._parenthesis())
            elif kind == "text":
                plain = text[1:-1] if text.startswith("`") else self._quoted(text)
                words.append(lambda _value, _scope, plain=plain: plain)  # type: ignore[misc]
            elif kind == "number":
                number = float(text) if "." in text else int(text)
                words.append(lambda _value, _scope, number=number: number)  # type: ignore[misc]
            elif text in ("true", "false", "nil"):
                known = {"true": True, "false": False, "nil": None}[text]
                words.append(lambda _value, _scope, known=known: known)  # type: ignore[misc]
            elif text.startswith((".", "$")):
                words.append(self._path(text))
            elif not words and not name and text in _FUNCTIONS:
                name = text
            else:
                raise self._fail(f"{text!r} is no function that is known here")
        if name:
            return self._call(name, words)
        if len(words) != 1 or not first:
            raise self._fail(f"{self._text!r} is not understood")
        return lambda value, scope, _last: words[0](value, scope)

    def _quoted(self, text: str) -> str:
        try:
            return str(json.loads(text))
        except ValueError as err:
            raise self._fail(f"{text} is not understood") from err

    def _parenthesis(self) -> Callable[[Any, Scope], Any]:
        """`(pipeline)`, or a field of it: `(index .Ports "80/tcp").HostPort`."""
        inner = self._pipeline()
        if self._peek() != ")":
            raise self._fail("a ) is missing")
        self._at += 1
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "field":
            find = self._path(self._tokens[self._at][1])
            self._at += 1
            return lambda value, scope: find(inner(value, scope), scope)
        return inner

    def _call(
        self, name: str, words: list[Callable[[Any, Scope], Any]]
    ) -> Callable[[Any, Scope, tuple[Any, ...]], Any]:
        function = _FUNCTIONS[name]

        def call(value: Any, scope: Scope, last: tuple[Any, ...]) -> Any:
            try:
                return function(*(word(value, scope) for word in words), *last)
            except (TypeError, ValueError, LookupError, AttributeError) as err:
                raise self._fail(f"{name}: {err}") from err

        return call

    def _path(self, text: str) -> Callable[[Any, Scope], Any]:
        root, *names = text.split(".")

        def find(value: Any, scope: Scope) -> Any:
            found = scope.get(root) if root else value
            if root and root not in scope:
                raise self._fail(f"{root} is not defined")
            for name in filter(None, names):
                if not isinstance(found, Mapping) or name not in found:
                    known = list(found) if isinstance(found, Mapping) else []
                    there = "; there are " + " ".join(f".{key}" for key in known) if known else ""
                    raise self._fail(f"there is no .{name}{there}")
                found = found[name]
            return found

        return find


def _printing(pipeline: _Pipeline) -> Node:
    return lambda value, scope: visible_lines(_shown(pipeline(value, scope)))


def _true(value: Any) -> bool:
    return bool(value)


def _shown(value: Any) -> str:
    """As Go prints a value with %v."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_shown(item)}' for key, item in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_shown, value))}]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _printf(shape: str, *values: Any) -> str:
    left = list(reversed(values))

    def one(found: re.Match[str]) -> str:
        if found[2] == "%":
            return "%"
        if not left:
            raise ValueError(f"there is no value for {found[0]}")
        return _one(found[1], found[2], left.pop())

    return re.sub(r"%([-0-9.]*)([sdvqf%])", one, shape)


def _one(width: str, verb: str, value: Any) -> str:
    if verb == "q":
        return json.dumps(str(value))
    return f"%{width}{'s' if verb == 'v' else verb}" % (_shown(value) if verb in "sv" else value)


def _all(*values: Any) -> Any:
    return next((value for value in values if not _true(value)), values[-1])


def _any(*values: Any) -> Any:
    return next((value for value in values if _true(value)), values[-1])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": json_text,
    "upper": lambda text: str(text).upper(),
    "lower": lambda text: str(text).lower(),
    "title": lambda text: str(text).title(),
    "join": lambda words, by: by.join(map(str, words or ())),
    "split": lambda text, by: text.split(by),
    "len": len,
    "index": _index,
    "print": lambda *values: "".join(map(_shown, values)),
    "println": lambda *values: " ".join(map(_shown, values)) + "\n",
    "printf": _printf,
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
    "and": _all,
    "or": _any,
    "not": lambda value: not _true(value),
}
