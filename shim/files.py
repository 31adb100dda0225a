"""Small files without `open`: its text layer touches 0.3 MB in a process that uses it once."""

import os
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _quoted

_BLOCK = 16 * 1024
_PIECE = 2048


def read_small(path: str) -> bytes:
    """A whole file, of proc or cgroup for example, which give a page at a time. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _BLOCK)
        while more := os.read(fd, _BLOCK):
            data += more
        return data
    finally:
        os.close(fd)


def read_text(path: str) -> str:
    """The same as text; "" when it cannot be read."""
    try:
        return read_small(path).decode("ascii", "replace")
    except OSError:
        return ""


def holds(path: str, *words: bytes) -> bool:
    """Whether a file has all of these somewhere. Raises OSError.

    Read in pieces: what a large file takes at once would stay with the process.
    """
    missing = list(words)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while missing and (piece := os.read(fd, _PIECE)):
            text = text[1 - max(map(len, missing)) :] + piece
            missing = [word for word in missing if word not in text]
    finally:
        os.close(fd)
    return not missing


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: a nearly full disk takes a part without a word, and the rest then fails with
    ENOSPC. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def remove_tree(path: str) -> None:
    """A directory with all that is in it, no link followed; what cannot be removed stays."""
    for directory, subdirs, names in os.walk(path, topdown=False):
        for name in (*names, *(n for n in subdirs if os.path.islink(f"{directory}/{n}"))):
            _quietly(os.unlink, f"{directory}/{name}")
        _quietly(os.rmdir, directory)


def _quietly(act: Callable[[str], None], path: str) -> None:
    try:
        act(path)
    except OSError:
        pass


def json_object(record: dict[str, object]) -> bytes:
    """A JSON object of texts, integers and lists of them. json would touch 0.2 MB for it."""
    fields = [f"{_quoted(name)}: {_value(value)}" for name, value in record.items()]
    return ("{" + ", ".join(fields) + "}").encode()


def _value(value: object) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(int(str(value)))
