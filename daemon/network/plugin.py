"""One call of a CNI plugin: a program, its environment, one document in and one out.

CNI's protocol (https://www.cni.dev/docs/spec, section 2): the command and who is meant stand in the
environment, the configuration goes to standard input, a result or an error comes as JSON from
standard output. What a plugin writes is outside data: it is capped, and it is quoted, never logged
whole, since configurations hold secrets.

A plugin is not trusted to end: it has a process group of its own, which is killed at the deadline
and when the caller gives up. A manager that is killed itself leaves the group running, so each
carries a token by which the next manager finds it (strays.py).
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from lighter.daemon.network.strays import TOKEN, Strays
from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

log = logging.getLogger("lighter.network")

MAX_OUTPUT_BYTES = 1 << 20
MAX_STDERR_BYTES = 64 << 10
QUOTED = 400
KILLED_S = 5.0
_POLL_S = 0.02
_DRAIN_S = 2.0  # of a pipe whose writer has ended

# Where plugins are looked for, after CNI_PATH and the configured directory.
DIRECTORIES = ("/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni")
# CNI's own codes (section "Error"): what to do about two of them is known.
_INCOMPATIBLE_VERSION = 1
_TRY_AGAIN_LATER = 11


def search_path(configured: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The directories in their order."""
    own = [path for path in environ.get("CNI_PATH", "").split(":") if path.startswith("/")]
    return tuple(dict.fromkeys((*own, *((configured,) if configured else ()), *DIRECTORIES)))


def find(kind: str, directories: Sequence[str]) -> str:
    """The program of a plugin's type. Raises NotFound, FailedPrecondition for an unsafe file."""
    refused = ""
    for directory in directories:
        path = f"{directory}/{kind}"
        try:
            info = os.stat(path)
        except OSError:
            continue
        if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
            continue
        unsafe = _open_to_others(path, info)
        if not unsafe:
            return path
        refused = refused or f"run CNI plugin {path}: others than root may change {unsafe}"
    if refused:
        raise FailedPrecondition(refused)
    raise NotFound(f"find CNI plugin {kind}: it is in none of {', '.join(directories)}")


def _open_to_others(path: str, info: os.stat_result) -> str:
    """The file, or the directory that it or its name is in, which others may change; "" if none."""
    if _others_may_change(info):
        return "it"
    for place in (os.path.dirname(path), os.path.dirname(os.path.realpath(path))):
        if _others_may_change(os.stat(place)):
            return place
    return ""


def _others_may_change(info: os.stat_result) -> bool:
    """A file, or which files are in a directory; in a sticky one only their owner says that."""
    if info.st_uid not in (0, os.geteuid()):
        return True
    if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX:
        return False
    by_group = info.st_gid != 0 and bool(info.st_mode & stat.S_IWGRP)
    return by_group or bool(info.st_mode & stat.S_IWOTH)


async def call(
    program: str,
    environ: Mapping[str, str],
    config: Mapping[str, Any],
    timeout_s: float,
    strays: Strays,
) -> dict[str, Any]:
    """Run it once; what it answered, {} for nothing.

    Raises DeadlineExceeded, Unavailable (the plugin asks to be tried later), FailedPrecondition
    with the plugin's own words, ResourceExhausted for endless output.
    """
    what = f"{environ['CNI_COMMAND']} of CNI plugin {os.path.basename(program)}"
    data = json.dumps(config).encode()
    process = await _start(program, environ, what)
    out, err = bytearray(), bytearray()
    pipes = asyncio.gather(
        _read(process.stdout, out, MAX_OUTPUT_BYTES),
        _read(process.stderr, err, MAX_STDERR_BYTES),
        _write(process, data),
    )
    try:
        async with asyncio.timeout(timeout_s):
            code = await _ended(process, pipes)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what}: it did not end in {timeout_s:g} s") from error
    finally:
        pipes.cancel()
        await _end(process)
    if not pipes.done() or pipes.cancelled():
        # A child of its own holds them open; who is asked for more waits for ever.
        await strays.end({environ.get(TOKEN, "")})
    if len(out) > MAX_OUTPUT_BYTES:
        raise ResourceExhausted(f"{what}: it wrote more than {MAX_OUTPUT_BYTES} bytes")
    return _answer(what, code, bytes(out), bytes(err))


async def _ended(process: asyncio.subprocess.Process, pipes: "asyncio.Future[Any]") -> int:
    """The plugin's exit status, once its output is read. Process.wait would wait for its children
    too.
    """
    while process.returncode is None:
        if pipes.done():
            return await process.wait()
        await asyncio.wait([pipes], timeout=_POLL_S)
    await asyncio.wait([pipes], timeout=_DRAIN_S)
    return process.returncode


async def _start(program: str, environ: Mapping[str, str], what: str) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            program,
            env=dict(environ),
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as err:
        raise FailedPrecondition(f"{what}: {err.strerror}") from err


async def _write(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # one that does not read it
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()


async def _read(stream: asyncio.StreamReader | None, kept: bytearray, most: int) -> None:
    """Read to the end; of that, `most` bytes and one more are kept."""
    assert stream is not None
    while chunk := await stream.read(65536):
        kept += chunk[: most + 1 - len(kept)]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a plugin that has not ended, with its group. Until it is reaped, nobody else has its
    pid.
    """
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # one in uninterruptible sleep
        async with asyncio.timeout(KILLED_S):
            await process.wait()


def _answer(what: str, code: int, out: bytes, err: bytes) -> dict[str, Any]:
    try:
        document = json.loads(out) if out.strip() else {}
    except (ValueError, RecursionError) as error:
        if code == 0:
            raise FailedPrecondition(f"{what}: its answer is no JSON: {_quoted(out)}") from error
        document = {}
    if not isinstance(document, dict):
        raise FailedPrecondition(f"{what}: its answer is no object: {_quoted(out)}")
    number = document.get("code")
    failed = isinstance(number, int) and "msg" in document  # some end with 0 all the same
    if code == 0 and not failed:
        return document
    words = " ".join(str(document.get(key) or "") for key in ("msg", "details"))
    words = _quoted(words.encode(errors="replace"))  # JSON can spell half a character
    words = words or _quoted(err.strip().rpartition(b"\n")[2]) or f"it ended with {code}"
    if number == _TRY_AGAIN_LATER:
        raise Unavailable(f"{what}: {words}")
    if number == _INCOMPATIBLE_VERSION:
        raise InvalidArgument(f"{what}: {words}")
    raise FailedPrecondition(f"{what}: {words}")


def _quoted(data: bytes) -> str:
    text = data[:QUOTED].decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)
