"""Where a client of containerd wants a process's streams: paths of FIFOs, or one URI for output.

    /path/of/a/fifo, fifo:///path    the client has made it
    file:///path                     stdout and stderr are appended to it
    binary:///program?key=value      a program takes them (shim/logger.py); its words are key value

What stdout is decides for stderr too, as in containerd's shim.
"""

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from lighter.proto.errors import InvalidArgument

MAX_WORDS = 24  # of a logging program


def stdio_of(stdin: str, stdout: str, stderr: str, terminal: bool) -> dict[str, Any]:
    """The fields of a create or exec order (proto/shim_api). Raises InvalidArgument."""
    streams: dict[str, Any] = {
        "stdin": _path("stdin", stdin),
        "stdout": "",
        "stderr": "",
        "rows": 0,
        "cols": 0,
        "io_policy": "block",
    }
    scheme = _scheme(stdout)
    if scheme == "binary":
        streams["logger"] = _program(stdout)
    elif scheme == "file":
        path = "file://" + _path("stdout", unquote(urlsplit(stdout).path))
        streams |= {"stdout": path, "stderr": path if stderr else ""}
    else:
        streams |= {"stdout": _path("stdout", stdout), "stderr": _path("stderr", stderr)}
    if terminal:
        streams["stderr"] = ""
    return streams


def log_streams(uri: str) -> dict[str, Any]:
    """Where all output of a container goes whose log URI this is. Raises InvalidArgument."""
    if "://" not in uri or uri.startswith("fifo:"):
        raise InvalidArgument(f"use {uri!r} as log: expected file:///path or binary:///program")
    streams = stdio_of("", uri, uri, terminal=False)
    return {key: streams[key] for key in ("stdout", "stderr", "logger") if streams.get(key)}


def _scheme(uri: str) -> str:
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "fifo":
        return "fifo"
    if scheme not in ("file", "binary"):
        raise InvalidArgument(f"use {uri} as stdout: unknown STDIO scheme {scheme}")
    return scheme


def _path(name: str, given: str) -> str:
    path = given.removeprefix("fifo://")
    if not path:
        return ""
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"use {given!r} as {name}: expected an absolute path")
    # Those of processes: what a client may name is a file of its own.
    if path.lstrip("/").startswith("proc/") or "/../" in path:
        raise InvalidArgument(f"use {given} as {name}: it is no path of a FIFO")
    return path


def _program(uri: str) -> list[str]:
    parts = urlsplit(uri)
    argv = [_path("stdout", unquote(parts.path))]
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        argv += [key, value]
    if not argv[0] or len(argv) > MAX_WORDS or any("\0" in word for word in argv):
        raise InvalidArgument(f"use {uri} as stdout: it names no program with its words")
    return argv
