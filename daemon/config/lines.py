"""Which line of a TOML file a complaint about a key is about; the parser keeps no lines."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

# No letter can be taken in two ways, for a search that fails tries them all.
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*')"""
_HEADER = re.compile(rf"\s*(\[\[?(?:[^]\"']|{_QUOTED})+\]\]?)\s*(?:#.*)?")
_KEY = rf"(?:[A-Za-z0-9_-]++|{_QUOTED})"
_ASSIGNMENT = re.compile(rf"\s*+({_KEY}(?:[ \t]*+\.[ \t]*+{_KEY})*+)[ \t]*+=")
# Texts of several lines, and of one; comments; what opens and closes a list or a table.
_PIECE = re.compile(
    r'''
      """(?:[^"\\]+|\\.|"(?!""))*"{3,5} | \'{3}(?:[^']+|'(?!\'\'))*\'{3,5}
    | "(?:[^"\\]+|\\.)*" | '[^']*' | \#[^\n]* | [][{}\n]
    ''',
    re.DOTALL | re.VERBOSE,
)
_DEPTH = {"[": 1, "{": 1, "]": -1, "}": -1}
# As messages write a key: dotted, or its last names.
_WORD = re.compile(r"[A-Za-z0-9_-]+(?:[./:*-]+[A-Za-z0-9_-]+)*")


def line_of(text: str, complaint: str, *, exactly: bool = False) -> int | None:
    """The line of the first key that the complaint names, or of the table that it is in.

    `exactly`: of the key that the complaint begins with, and of no other.
    """
    keys = {key: line for line, key in reversed(list(_keys(text)))}
    words = _WORD.findall(complaint)
    for word in words[:1] if exactly else words:
        # A name alone is a key of the top: `level` may be a value's too.
        named = [key for key in keys if key == word or ("." in word and key.endswith(f".{word}"))]
        if named:
            return keys[min(named, key=lambda key: keys[key])]
        if exactly:
            continue
        above = [key for key in keys if word.startswith(f"{key}.")]
        if above:
            return keys[max(above, key=len)]
    return None


def _keys(text: str) -> Iterator[tuple[int, str]]:
    """(line, dotted key) of each table and each assignment that begins a line."""
    lines = text.split("\n")  # as the parser counts them
    table = ""
    for number in beginnings(text):
        line = lines[number - 1].strip()
        if header := _HEADER.fullmatch(line):
            key = table = _dotted(header[1])
        elif found := _ASSIGNMENT.match(line):
            inner = _dotted(f"{found[1]} = 0")
            key = f"{table}.{inner}" if table and inner else inner
        else:
            continue
        if key:
            yield number, key


def beginnings(text: str) -> Iterator[int]:
    """The lines of a document, which is well-formed, that no list or text of several lines is in.

    Walked through once: a manager looks for a mistake while it serves.
    """
    number, depth = 1, 0
    yield number
    for found in _PIECE.finditer(text):
        piece = found[0]
        number += piece.count("\n")
        if piece == "\n" and depth == 0:
            yield number
        depth += _DEPTH.get(piece, 0)


def _dotted(statement: str) -> str:
    """The names that a statement of TOML leads through; "" for what is none."""
    try:
        value: Any = tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return ""
    names = []
    while isinstance(value, dict | list) and value:
        if isinstance(value, list):
            value = value[0]
        else:
            name, value = next(iter(value.items()))
            names.append(name)
    return ".".join(names)
