"""`ctl system support`: one file for a report of a fault, made of what can be had.

Whatever cannot be had (no manager, no journal) is noted in the bundle and keeps nothing else away.
No output of containers, no value of a variable, argument or label of theirs, no credential is in
it (redact.py). It is still for the eyes of whoever helps, not for everybody's.
"""

import contextlib
import errno
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from lighter.ctl import redact
from lighter.ctl.cli import Session
from lighter.ctl.doctor import AWAY_S, CALL_S, SOON_S, examination, said_by
from lighter.ctl.output import plain
from lighter.ctl.paging import pages
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    LighterError,
    Unavailable,
    words_of,
)
from lighter.proto.version import VERSION

PART_BYTES = 8 << 20  # of one file in the bundle; the end is what counts of a log
COMMAND_S = 20.0
EVENTS = 2000
JOURNAL_LINES = "5000"
_UNIT = "lighterd.service"
# Of the host, read as they are.
_FILES = (
    "/etc/os-release",
    "/proc/version",
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/mounts",
    "/proc/cgroups",
    "/proc/filesystems",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/sys/fs/cgroup/cgroup.controllers",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/security/lsm",
)
_COMMANDS = {
    "journal.txt": (
        "journalctl",
        "-u",
        _UNIT,
        "-n",
        JOURNAL_LINES,
        "--no-pager",
        "-o",
        "short-iso",
    ),
    "unit.txt": ("systemctl", "status", "--no-pager", "-l", _UNIT),
    "packages.txt": ("rpm", "-qa", "lighter*", "runc", "crun", "containernetworking-plugins"),
    "disks.txt": ("df", "-hT"),
    "inodes.txt": ("df", "-i"),
}

Part = tuple[str, Callable[[], bytes]]


def write(session: Session, path: str, lighterd: str) -> None:
    """Make the bundle at `path` ("" for a name of its own, "-" for standard output).

    Raises AlreadyExists for a file that is there, Internal when it cannot be written.
    """
    name = f"lighter-support-{os.uname().nodename}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    parts = list(_parts(session, lighterd))
    if path == "-":
        _fill(sys.stdout.buffer, name, parts, session)
        return
    path = path or f"{name}.tar.gz"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as err:
        raise AlreadyExists(f"write {path}: it exists already") from err
    except OSError as err:
        raise Internal(f"write {path}: {err.strerror}") from err
    try:
        with open(fd, "wb") as file:
            _fill(file, name, parts, session)
    except BaseException as err:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if isinstance(err, OSError):
            raise Internal(f"write {path}: {err.strerror}") from err
        raise
    print(path)


def _fill(file: Any, name: str, parts: list[Part], session: Session) -> None:
    missing = []
    with tarfile.open(fileobj=file, mode="w|gz") as bundle:
        for part, make in parts:
            try:
                data = make()
            except (LighterError, OSError, ValueError, subprocess.SubprocessError) as err:
                missing.append(f"{part}: {words_of(err)}")
                if isinstance(err, DeadlineExceeded):
                    session.manager.limit_calls(SOON_S)
                continue
            _add(bundle, f"{name}/{part}", data)
        _add(bundle, f"{name}/missing.txt", "".join(f"{line}\n" for line in missing).encode())
    for line in missing if session.debug else ():
        session.complain(f"not in the bundle: {line}")


def _add(bundle: tarfile.TarFile, name: str, data: bytes) -> None:
    if len(data) > PART_BYTES:
        data = b"(the beginning is left out)\n" + data[-PART_BYTES:]
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
    bundle.addfile(member, io.BytesIO(data))


def _parts(session: Session, lighterd: str) -> Iterator[Part]:
    yield "doctor.json", lambda: _json(examination(session, lighterd))
    yield "client.json", lambda: _json({"version": VERSION, "argv": sys.argv[:1]})
    yield from _of_manager(session)
    state = os.path.dirname(session.address.removeprefix("unix://"))
    yield "lighterd.log", lambda: _end_of(f"{state}/lighterd.log")
    yield "shims.log", lambda: _shim_reports(f"{state}/tasks")
    for name, argv in _COMMANDS.items():
        yield f"host/{name}", lambda argv=argv: _said_by(argv)  # type: ignore[misc]
    for path in _FILES:
        yield f"host/{path[1:].replace('/', '.')}", lambda path=path: _end_of(path)  # type: ignore[misc]


def _of_manager(session: Session) -> Iterator[Part]:
    """Each with an error of its own; without a manager one for all, which is waited for once."""
    session.connect_timeout_s = min(session.connect_timeout_s, AWAY_S)
    try:
        session.manager.limit_calls(CALL_S)
        session.manager.connect()
    except Unavailable as err:
        away = err

        def refused() -> bytes:
            raise away

        yield "manager", refused
        return
    for name, method, key in (
        ("info.json", "system.health", ""),
        ("version.json", "version.get", ""),
        ("plugins.json", "system.plugins", "plugins"),
        ("processes.json", "system.processes", "processes"),
        ("shims.json", "system.shims", "shims"),
        ("usage.json", "system.df", "usage"),
        ("networks.json", "networks.list", ""),
    ):
        yield name, lambda method=method, key=key: _json(_answer(session, method, key))  # type: ignore[misc]
    yield (
        "config.toml",
        lambda: str(session.call("system.configuration")["config"]).encode(),
    )
    yield "objects.json", lambda: _json(_objects(session))
    yield "events.jsonl", lambda: _events(session)


def _answer(session: Session, method: str, key: str) -> Any:
    answer = session.call(method)
    return redact.labels(answer[key] if key else answer)


def _objects(session: Session) -> dict[str, Any]:
    """By namespace: containers with their specs, tasks, images, snapshots."""
    found: dict[str, Any] = {}
    names = [row["name"] for row in session.call("namespaces.list")["namespaces"]]
    given = session.manager.namespace
    try:
        for name in names:
            session.manager.namespace = name
            found[name] = {
                "containers": list(_containers(session)),
                "tasks": redact.labels(session.call("tasks.list")["tasks"]),
                "images": redact.labels(pages(session, "images.list", "images")),
                "volumes": redact.labels(session.call("volumes.list")["volumes"]),
            }
    finally:
        session.manager.namespace = given
    return found


def _containers(session: Session) -> Iterator[Any]:
    """What is known of each but its options, which hold commands and addresses people gave."""
    for row in pages(session, "containers.list", "containers"):
        try:
            whole = session.call("containers.get", id=row["id"])["container"]
        except DeadlineExceeded:
            raise
        except LighterError as err:  # it went meanwhile
            yield {"id": row["id"], "missing": err.message}
            continue
        kept = redact.labels({key: whole[key] for key in row if key in whole})
        yield {
            **kept,
            "spec": redact.spec(whole["spec"]),
            "networks": whole.get("networks"),
            "ports": whole.get("ports"),
            "restart": whole.get("restart"),
        }


def _events(session: Session) -> bytes:
    newest = int(session.call("events.newest")["sequence"])
    call = session.manager.begin(
        "events.subscribe",
        namespace="",
        since=max(0, newest - EVENTS),
        follow=False,
        since_time=None,
        until_time=None,
        filters=[],
        expressions=[],
    )
    lines = (json.dumps(plain(redact.labels(event)), ensure_ascii=False) for event in call)
    return "".join(f"{line}\n" for line in lines).encode()


def _shim_reports(tasks: str) -> bytes:
    """Faults that shims have written down beside their tasks; mostly there are none.

    No further down than there: below are the containers' own roots.
    """
    said = []
    for folder in (folder for namespace in _within(tasks) for folder in _within(namespace)):
        try:
            report = _end_of(f"{folder}/shim.log", os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as err:
            if isinstance(err, FileNotFoundError | NotADirectoryError):
                continue
            report = f"(not read: {err.strerror})\n".encode()
        said.append(f"--- {folder}\n".encode() + report)
    return b"".join(said)


def _within(folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _end_of(path: str, flags: int = 0) -> bytes:
    """Raises OSError, also for what is no regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | flags)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        with contextlib.suppress(OSError):
            file.seek(-PART_BYTES, os.SEEK_END)
        return file.read(PART_BYTES)


def _said_by(argv: tuple[str, ...]) -> bytes:
    _code, out, err = said_by(argv, COMMAND_S)
    return out + err


def _json(value: Any) -> bytes:
    return (json.dumps(plain(value), indent=2, ensure_ascii=False, default=repr) + "\n").encode()
