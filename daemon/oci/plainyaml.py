"""The plain part of YAML that device and class files are written in; JSON is a part of it too.

Block mappings and lists, quoted and plain scalars on one line, comments, `[a, b]` and `{}`. All
that lets a document be more than it shows (anchors, aliases, tags, merge keys) and texts of several
lines are refused, with the line.
"""

import json
import re
from typing import Any

from lighter.proto.errors import InvalidArgument

MAX_DEPTH = 32

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_OCTAL = re.compile(r"0o?([0-7]+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]+", re.ASCII)
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_REFUSED = {"&": "an anchor", "*": "an alias", "!": "a tag", "|": "a text of lines", ">": "a text"}

_PART = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,\[\]{}"'&*!#][^,\[\]{}"'#]*+)"""
_ITEM = re.compile(_PART)
_FLOW = re.compile(rf"\[\s*(?:{_PART}\s*(?:,\s*{_PART}\s*)*)?\]")

Line = tuple[int, str, int]  # how far it is indented, what it says, its number


def parse(text: str, what: str) -> Any:
    """Raises InvalidArgument, naming `what` and the line."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as err:
            raise InvalidArgument(f"read {what}: not JSON: {err}") from err
    return _Reader(text, what).document()


class _Reader:
    def __init__(self, text: str, what: str) -> None:
        self._what = what
        self._lines = self._split(text)
        self._next = 0

    def _error(self, number: int, cause: str) -> InvalidArgument:
        return InvalidArgument(f"read {self._what}: line {number}: {cause}")

    def _split(self, text: str) -> list[Line]:
        lines: list[Line] = []
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.rstrip()
            words = line.lstrip(" ")
            if not words or words.startswith("#") or (words in ("---", "...") and not lines):
                continue
            if words.startswith("\t"):
                raise self._error(number, "it is indented by a tab")
            if words in ("---", "..."):
                raise self._error(number, "there is a second document")
            lines.append((len(line) - len(words), words, number))
        return lines

    def document(self) -> Any:
        if not self._lines:
            return None
        value = self._block(self._lines[0][0], 0)
        if self._next < len(self._lines):
            raise self._error(self._lines[self._next][2], "it is indented otherwise")
        return value

    def _block(self, indent: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._error(self._lines[self._next][2], "it is nested too deeply")
        words = self._lines[self._next][1]
        if words == "-" or words.startswith("- "):
            return self._sequence(indent, depth)
        return self._mapping(indent, depth)

    def _at(self, indent: int) -> Line | None:
        """The next line, when it is indented so."""
        if self._next < len(self._lines) and self._lines[self._next][0] == indent:
            return self._lines[self._next]
        return None

    def _sequence(self, indent: int, depth: int) -> list[Any]:
        items = []
        while (line := self._at(indent)) and (line[1] == "-" or line[1].startswith("- ")):
            _, words, number = line
            rest = words[1:].lstrip(" ")
            if not rest:
                self._next += 1
                items.append(self._below(indent, depth))
            elif rest.startswith("- ") or self._key(rest, number) is not None:
                inside = indent + len(words) - len(rest)
                self._lines[self._next] = (inside, rest, number)
                items.append(self._block(inside, depth + 1))
            else:
                self._next += 1
                items.append(self._scalar(rest, number))
        return items

    def _mapping(self, indent: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while line := self._at(indent):
            _, words, number = line
            pair = self._key(words, number)
            if pair is None:
                raise self._error(number, "expected a key and a colon")
            key, rest = pair
            if key in found or key == "<<":
                raise self._error(number, f"key {key[:40]!r} is repeated or a merge")
            self._next += 1
            after = self._at(indent)
            if rest:
                found[key] = self._scalar(rest, number)
            elif after and (after[1] == "-" or after[1].startswith("- ")):
                found[key] = self._sequence(indent, depth + 1)
            else:
                found[key] = self._below(indent, depth)
        return found

    def _below(self, indent: int, depth: int) -> Any:
        if self._next < len(self._lines) and self._lines[self._next][0] > indent:
            return self._block(self._lines[self._next][0], depth + 1)
        return None

    def _key(self, words: str, number: int) -> tuple[str, str] | None:
        """(key, what follows), None for a line that is no pair."""
        if words[0] in "\"'":
            end = words.find(words[0], 1)
            if end < 0 or not words[end + 1 :].startswith(":"):
                return None
            return words[1:end], self._bare(words[end + 2 :], number)
        found = re.match(r"([^\s#:&*!|>'\"{}\[\],%@`-][^:#]*?):(?: +(.*))?$", words)
        if found is None:
            return None
        return found[1], self._bare(found[2] or "", number)

    def _bare(self, words: str, number: int) -> str:
        """The line without the comment at its end."""
        words = words.strip()
        if words.startswith("#"):
            return ""
        if words[:1] in ('"', "'"):
            return words
        if words[:1] in _REFUSED:
            raise self._error(number, f"{_REFUSED[words[0]]} is not read here")
        return re.split(r"\s#", words, maxsplit=1)[0].rstrip()

    def _scalar(self, words: str, number: int) -> Any:
        if words[0] == '"':
            return self._double(words, number)
        if words[0] == "'":
            found = re.match(r"'((?:[^']|'')*)'(?:\s+#.*)?$", words)
            if found is None:
                raise self._error(number, "a quote is not closed")
            return found[1].replace("''", "'")
        words = self._bare(words, number)
        if words.startswith(("[", "{")):
            return self._flow(words, number)
        try:
            return plain(words)
        except ValueError as err:  # so many digits that int() refuses them
            raise self._error(number, "a number is too long") from err

    def _double(self, words: str, number: int) -> str:
        try:
            value, end = json.JSONDecoder().raw_decode(words)
        except ValueError as err:
            raise self._error(number, "a quoted text cannot be read") from err
        if words[end:].strip() and not re.match(r"\s+#", words[end:]):
            raise self._error(number, "something follows a quoted text")
        return str(value)

    def _flow(self, words: str, number: int) -> Any:
        """`[a, "b"]`, `[]`, `{}`; what is nested must be JSON."""
        try:
            return json.loads(words)
        except RecursionError as err:
            raise self._error(number, "it is nested too deeply") from err
        except ValueError:
            pass
        if not _FLOW.fullmatch(words):
            raise self._error(number, "it cannot be read on one line")
        return [self._scalar(part, number) for part in _ITEM.findall(words[1:-1])]


def plain(words: str) -> Any:
    """A scalar without quotes, by YAML 1.2's core rules; a leading zero is octal, as in 1.1.

    Raises ValueError for a number of thousands of digits.
    """
    words = words.strip()
    if words.lower() in _WORDS:
        return _WORDS[words.lower()]
    if _INTEGER.fullmatch(words):
        return int(words)
    if octal := _OCTAL.fullmatch(words):
        return int(octal[1], 8)
    if _FLOAT.fullmatch(words):
        return float(words)
    return words
