"""The files of a configuration: the one that is named and what it imports, read and merged.

`imports = ["conf.d/*.toml", "/etc/lighter/site.toml"]`, as containerd has it: relative to the file
that says so, a pattern's files by their names, each file once. Imports of imports come last. Of a
key counts what the last file says; tables are merged. No file may have a higher version than the
first.
"""

import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from lighter.daemon import tomltext
from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

VERSION = 3  # of the layout, where a file does not say
MAX_CONFIG_BYTES = 1 << 20
MAX_FILES = 256


@frozen
class Source:
    """One file; `importers` are the real paths of itself and of those that led to it."""

    name: str
    text: str
    table: dict[str, Any]
    importers: tuple[str, ...]


def gather(path: str) -> list[Source]:
    """The file and all that it imports, in the order in which they count.

    Raises FileNotFoundError when there is no such file, InvalidArgument naming file and line for
    all else that cannot be read.
    """
    try:
        sources = [_read(path, ())]
    except FileNotFoundError:
        raise  # which is no mistake where it was not named
    except OSError as err:
        raise InvalidArgument(f"read config {path}: {err.strerror}") from err
    known = {sources[0].importers[-1]}
    for source in sources:  # which grows
        for name, is_pattern in _imports(source):
            real = os.path.realpath(name)
            if real in source.importers and not is_pattern:
                raise _complaint(source, f"imports {name!r}: it imports this file itself")
            if real in known:
                continue
            known.add(real)
            if len(known) > MAX_FILES:
                raise _complaint(source, f"imports more than {MAX_FILES} files")
            try:
                imported = _read(name, source.importers)
            except OSError as err:
                raise _complaint(source, f"imports {name!r}: {err.strerror}") from err
            _check_version(imported, sources[0])
            sources.append(imported)
    return sources


def merged(sources: Sequence[Source]) -> dict[str, Any]:
    """One table of all; the version is the first file's."""
    whole: dict[str, Any] = {}
    for source in sources:
        its_own = {key: value for key, value in source.table.items() if key != "version"}
        try:
            _merge(whole, its_own)
        except RecursionError as err:
            raise InvalidArgument(f"read config {source.name}: it nests too deep") from err
    whole.pop("imports", None)
    if "version" in sources[0].table:
        whole["version"] = sources[0].table["version"]
    return whole


def place_of(sources: Sequence[Source], complaint: str) -> str | None:
    """ "file:line" of the key that a complaint about the merged table names, if a file has it."""
    from lighter.daemon.config.lines import line_of

    of_first = complaint.startswith("version ")  # no other's counts
    # Where the key itself stands, before where only the table stands that it would be in.
    for exactly in (True, False):
        for source in sources[:1] if of_first else reversed(sources):
            at = line_of(source.text, complaint, exactly=exactly)
            if at is not None:
                return f"{source.name}:{at}"
    return None


def _complaint(source: Source, complaint: str) -> InvalidArgument:
    at = place_of([source], complaint) or source.name
    return InvalidArgument(f"read config {at}: {complaint}")


_PATTERN = re.compile(r"[*?\[]")


def _imports(source: Source) -> Iterator[tuple[str, bool]]:
    """(path, whether a pattern led to it) of each. Raises InvalidArgument."""
    value = source.table.get("imports", [])
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise _complaint(source, f"imports is {value!r}, expected a list of paths")
    for path in value:
        name = os.path.join(os.path.dirname(source.name), path)
        if "\0" in name:
            raise _complaint(source, f"imports {path!r}: it is no path")
        if not _PATTERN.search(path):
            yield os.path.normpath(name), False
            continue
        import glob  # which few files have a use for

        yield from ((found, True) for found in sorted(glob.glob(name)))


def _check_version(imported: Source, first: Source) -> None:
    """Raises InvalidArgument. What is wrong with the version of the first is not said here."""
    of_first = first.table.get("version", VERSION)
    version = imported.table.get("version", of_first)
    if type(of_first) is not int:
        return
    if type(version) is not int or version < 1:
        raise _complaint(imported, f"version is {version!r}, expected 1 to {of_first}")
    if version > of_first:
        raise _complaint(
            imported, f"version is {version}, and {first.name}, which imports it, has {of_first}"
        )


def _merge(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    for key, value in other.items():
        before = into.get(key)
        if isinstance(value, dict):
            value = _merge(before if isinstance(before, dict) else {}, value)
        into[key] = value
    return into


def _read(path: str, importers: tuple[str, ...]) -> Source:
    """Raises OSError; InvalidArgument, naming file and line, for what is no TOML."""
    data = _read_bytes(path)
    try:
        text = data.decode("utf-8")
        table = tomltext.loads(text)
    except tomllib.TOMLDecodeError as err:
        reason, line = _reason_and_line(str(err), data)
        raise InvalidArgument(f"read config {path}:{line}: {reason}") from err
    except UnicodeDecodeError as err:
        number = data.count(b"\n", 0, err.start) + 1
        raise InvalidArgument(
            f"read config {path}:{number}: byte {err.start} of the file is not UTF-8"
        ) from err
    except ValueError as err:
        raise InvalidArgument(f"read config {path}: {err}") from err
    except RecursionError as err:
        raise InvalidArgument(f"read config {path}: it nests too deep") from err
    return Source(path, text, table, (*importers, os.path.realpath(path)))


def _read_bytes(path: str) -> bytes:
    """The bytes of a regular file of at most MAX_CONFIG_BYTES. Raises OSError."""
    # Without NONBLOCK a FIFO in the file's place would hold the start for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        data = os.read(fd, MAX_CONFIG_BYTES + 1)  # one call reads a regular file to its end
    finally:
        os.close(fd)
    if len(data) > MAX_CONFIG_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_CONFIG_BYTES} bytes")
    return data


def _reason_and_line(message: str, data: bytes) -> tuple[str, int]:
    """tomllib's "reason (at line 3, column 5)", or "reason (at end of document)", taken apart."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message)
    if found and found[2]:
        return found[1], int(found[2])
    return message, len(data.splitlines())
