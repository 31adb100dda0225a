"""containerd's filters: what `ctr images ls FILTER…` and the gRPC lists take.

    name==docker.io/library/nginx:alpine        a field equals
    labels.tier!=web                            … does not
    name~=^docker.io/                           … has a match of a regular expression,
                                                which may stand between | or / too
    labels."a.b/c"                              … is there
    name~=nginx,target.mediatype==application/… all of these

A list of filters wants any of them; an empty filter takes all. A field is a path of names joined
by dots, a name with other characters in double quotes; a value that holds a comma or a quote is
quoted too (Go's rules of quoting, those that JSON shares). Space may stand before a name, an
operator or a value, and nowhere else: newer clients write it after a comma.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence

from lighter.proto.errors import InvalidArgument

# The value of a field by its path; None where there is none.
Look = Callable[[tuple[str, ...]], str | None]
Filter = Callable[[Look], bool]

MAX_FILTER = 4096
MAX_FILTERS = 64
MAX_EXPRESSION = 1 << 20  # bytes that a compiled one may have

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_OPERATOR = re.compile(r"==|!=|~=")
_OTHER_QUOTES = re.compile(r"(?:\|[^|]*\||/[^/]*/)(?=,|$)")  # around a regular expression
_PLAIN = re.compile(r'[^,"\s]+')
_SPACE = re.compile(r"\s*")


def any_of(texts: Sequence[str]) -> Filter:
    """A filter that wants any of these, and takes all without any. Raises InvalidArgument."""
    if len(texts) > MAX_FILTERS:
        raise InvalidArgument(f"parse filters: {len(texts)} are given, {MAX_FILTERS} are allowed")
    filters = [_all_of(_Text(text)) if text else _take_all for text in texts]
    if not filters:
        return lambda _look: True
    return lambda look: any(wanted(look) for wanted in filters)


def _take_all(_look: Look) -> bool:
    return True


class _Text:
    """One filter's text, read from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        if len(text) > MAX_FILTER:
            raise self.wrong(f"it has {len(text)} characters, {MAX_FILTER} are allowed")

    def take(self, pattern: "re.Pattern[str]") -> str | None:
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[0]

    def take_quoted(self) -> str | None:
        quoted = self.take(_QUOTED)
        if quoted is None:
            return None
        try:
            value = json.loads(quoted)
            value.encode()  # half of a character is none
        except ValueError as err:
            raise self.wrong(f"{quoted} is no quoted text") from err
        assert isinstance(value, str)
        return value

    def skip(self, char: str) -> bool:
        found = self.text.startswith(char, self.at)
        self.at += found
        return found

    def wrong(self, cause: str) -> InvalidArgument:
        return InvalidArgument(f"parse filter {self.text[:200]!r}: {cause}")


def _all_of(text: _Text) -> Filter:
    selectors = [_selector(text)]
    while text.skip(","):
        selectors.append(_selector(text))
    if text.at < len(text.text):
        raise text.wrong(f"{text.text[text.at :][:40]!r} is not expected at {text.at}")
    return lambda look: all(selector(look) for selector in selectors)


def _selector(text: _Text) -> Filter:
    path = [_name(text)]
    while text.skip("."):
        path.append(_name(text))
    field = tuple(path)
    after = text.at
    text.take(_SPACE)
    operator = text.take(_OPERATOR)
    if operator is None:
        text.at = after
        return lambda look: look(field) is not None
    text.take(_SPACE)
    value = text.take_quoted()
    other = text.take(_OTHER_QUOTES) if value is None and operator == "~=" else None
    if other is not None:
        value = other[1:-1]
    if value is None:
        value = text.take(_PLAIN) or ""
    if operator == "==":
        return lambda look: look(field) == value
    if operator == "!=":
        return lambda look: (look(field) or "") != value
    matches = _expression(value, text)
    return lambda look: matches(look(field) or "")


def _expression(value: str, text: _Text) -> Callable[[str], bool]:
    """Go's syntax, and time that grows with the text's length alone, as Go's does."""
    import re2  # for the few filters that have one

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_EXPRESSION
    try:
        pattern = re2.compile(value, options)
    except re2.error as err:
        (cause,) = err.args
        said = cause.decode(errors="replace") if isinstance(cause, bytes) else str(cause)
        raise text.wrong(f"{value!r} is no regular expression: {said}") from err
    return lambda looked_at: pattern.search(looked_at) is not None


def _name(text: _Text) -> str:
    text.take(_SPACE)
    name = text.take_quoted()
    if name is None:
        name = text.take(_NAME)
    if not name:
        raise text.wrong(f"a field's name is expected at {text.at}")
    return name


def label_path(path: Iterable[str]) -> str:
    """The label that a path names below `labels`: unquoted dots are part of it."""
    return ".".join(path)
