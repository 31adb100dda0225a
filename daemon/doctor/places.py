"""Directories, disk space, sockets, the database and what says how to reach registries."""

import os
import socket
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing

from lighter.daemon.config.schema import Config
from lighter.daemon.doctor.findings import OK, PROBLEM, WARNING, Finding
from lighter.daemon.metadata import index
from lighter.daemon.metadata.reserve import SIZE_BYTES
from lighter.daemon.registry.access import ANONYMOUS
from lighter.daemon.registry.hosts import endpoints
from lighter.proto.errors import LighterError
from lighter.proto.paths import Root, State
from lighter.proto.release import OWN
from lighter.proto.socketpath import check_socket_path

LITTLE = 0.05  # of a file system's space or inodes
CONNECT_S = 2.0
# A reboot forgets what is in these.
_FORGETFUL = {"tmpfs", "ramfs"}
_PROBE = "trusted.overlay.lighter"


def directories(config: Config) -> Iterator[Finding]:
    """Root and state: who may write there, and on what they are."""
    for name, path in (("root", config.root), ("state", config.state)):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            yield Finding(name, OK, f"{path} is not there yet", "the first start makes it")
            continue
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            shown = f"{path}: owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
            yield Finding(name, PROBLEM, shown, "only root may write there")
            continue
        kind = _file_system(path)
        if name == "root" and kind in _FORGETFUL:
            yield Finding(name, WARNING, f"{path} on {kind}", "a reboot loses every image")
        else:
            yield Finding(name, OK, f"{path} on {kind}")


def overlay(config: Config) -> Iterator[Finding]:
    """Whether the kernel has overlayfs, and the root can be its upper directory."""
    if config.snapshotter != "overlayfs":
        yield Finding("snapshotter", OK, config.snapshotter)
        return
    with open("/proc/filesystems", encoding="ascii") as file:
        has_overlay = any(line.split()[-1:] == ["overlay"] for line in file)
    module = f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs"
    if not has_overlay and not os.path.isdir(module):
        advice = 'snapshotter = "native" in the configuration copies instead'
        yield Finding("snapshotter", PROBLEM, "the kernel has no overlayfs", advice)
        return
    directory = Root(config.root).snapshots + "/overlayfs"
    if os.path.isdir(directory):
        try:
            os.setxattr(directory, _PROBE, b"y")
            os.removexattr(directory, _PROBE)
        except OSError as err:
            shown = f"{directory} keeps no trusted attributes ({err.strerror})"
            advice = 'another root, or snapshotter = "native"'
            yield Finding("snapshotter", PROBLEM, shown, advice)
            return
    yield Finding("snapshotter", OK, "overlayfs")


def space(config: Config) -> Iterator[Finding]:
    """Free bytes and inodes below root and state, where a full disk is felt."""
    for name, path in (("root", config.root), ("state", config.state)):
        if not os.path.isdir(path):
            continue
        found = os.statvfs(path)
        free_bytes = found.f_bavail * found.f_frsize
        share = found.f_bavail / found.f_blocks if found.f_blocks else 1.0
        inodes = found.f_favail / found.f_files if found.f_files else 1.0
        shown = f"{path}: {free_bytes >> 20} MiB free ({share:.0%}), {inodes:.0%} of inodes"
        check, advice = f"space of {name}", "`ctl system df` tells what takes it"
        if free_bytes < SIZE_BYTES or (found.f_files and not found.f_favail):
            yield Finding(check, PROBLEM, shown, advice)
        elif share < LITTLE or inodes < LITTLE:
            yield Finding(check, WARNING, shown, advice)
        else:
            yield Finding(check, OK, shown)


def database(config: Config) -> Iterator[Finding]:
    """SQLite's own judgement of its file, and whether this version can open it."""
    path = Root(config.root).database
    if not os.path.exists(path):
        yield Finding("database", OK, f"{path} is not there yet", "the first start makes it")
        return
    if not index.has_room(path):
        advice = "make room: no manager can start"
        yield Finding("database", PROBLEM, f"{path}: its disk is full", advice)
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as opened:
            (schema,) = opened.execute("PRAGMA user_version").fetchone()
            (verdict,) = opened.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as err:
        advice = "docs/upgrade.md says what a start does about it"
        yield Finding("database", PROBLEM, f"{path}: {err}", advice)
        return
    shown = f"{path}: schema {schema}, {os.stat(path).st_size >> 10} KiB"
    if verdict != "ok":
        yield Finding("database", PROBLEM, f"{shown}: {verdict}", "the next start mends or says")
    elif schema > OWN.schema_newest:
        advice = f"a newer version made it; {OWN.version} works with {OWN.schema_newest} at most"
        yield Finding("database", PROBLEM, shown, advice)
    else:
        yield Finding("database", OK, shown)


def sockets(config: Config) -> Iterator[Finding]:
    """Who may connect, and whether somebody answers there."""
    state = State(config.state)
    paths = (state.client_socket, state.shims_socket, state.grpc_socket, config.address)
    for path in dict.fromkeys(filter(None, paths)):
        check_socket_path(path)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            yield Finding("socket", OK, f"{path} is not there", "no manager serves")
            continue
        shown = f"{path}: mode {stat.S_IMODE(found.st_mode):04o}"
        if not stat.S_ISSOCK(found.st_mode):
            yield Finding("socket", PROBLEM, f"{path} is no socket", "a start is refused")
        elif found.st_mode & stat.S_IRWXO:
            yield Finding("socket", PROBLEM, shown, "others than root and its group may connect")
        elif not _answers(path):
            yield Finding("socket", OK, f"{shown}, nobody listens", "the next start replaces it")
        else:
            yield Finding("socket", OK, shown)


def registries(config: Config) -> Iterator[Finding]:
    """Each directory of hosts.toml files, read as a pull would read it."""
    settings, found = config.registry, 0
    for root in settings.config_path:
        for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
            host, mark, port = name.removesuffix("_").rpartition("_")
            domain = f"{host}:{port}" if mark and name.endswith("_") else name
            if not os.path.isdir(os.path.join(root, name)):
                continue
            try:
                endpoints("example.com" if name == "_default" else domain, ANONYMOUS, settings)
                found += 1
            except LighterError as err:
                advice = "`ctl registry test` shows what is asked"
                yield Finding("registry", PROBLEM, err.message, advice)
    yield Finding("registry", OK, f"{found} directories of hosts can be read")


def _answers(path: str) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _file_system(path: str) -> str:
    """The type of the file system it is on, by the longest mount point above:
    proc_pid_mountinfo(5).
    """
    wanted, best, kind = os.path.realpath(path) + "/", "", "?"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point = before.split()[4]
            if wanted.startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, after.split()[0]
    return kind
