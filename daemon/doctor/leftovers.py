"""What belongs to nobody any more: shims, bundles, mounts, cgroups and netns of this instance.

A manager that starts removes such things by itself. What is still here afterwards is a fault, and
this tells where to look. A create or a removal that is under way may show for its moment.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from lighter.daemon import files
from lighter.daemon.config.schema import Config
from lighter.daemon.doctor.findings import OK, WARNING, Finding
from lighter.daemon.metadata import index
from lighter.daemon.metadata.texts import text_of
from lighter.daemon.tasks.reach import is_alive, may_be_shim
from lighter.proto.paths import Root, State

MAX_TITLE = 1 << 12
MAX_RECORD = 1 << 20
SHOWN = 5  # of one kind by name
_CGROUPS = "/sys/fs/cgroup"


class _Task(NamedTuple):
    namespace: str
    id: str


def leftovers(config: Config) -> Iterator[Finding]:
    """One finding for each kind that has any, or one that there is nothing."""
    root, state = Root(config.root), State(config.state)
    tasks = set(_tasks(state.tasks))
    recorded = {task: _recorded_pid(state, task) for task in tasks}
    ended = _ended(root.database)
    shims = dict(_running_shims(root.instance))
    pids = set(recorded.values())
    kinds = {
        "shims without a record": [
            f"{task.namespace}/{task.id} (pid {pid})"
            for pid, task in shims.items()
            if pid not in pids
        ],
        "records whose shim is gone": [
            f"{task.namespace}/{task.id}"
            for task, pid in recorded.items()
            if not pid and task not in ended
        ],
        "mounts without a task": list(_mounts(state.tasks, tasks)),
        "cgroups without a task": list(_cgroups(root.instance, tasks)),
        "netns without a record": [
            f"{state.netns}/{key}"
            for key in sorted(_files(state.netns) - _directories(root.networks))
        ],
    }
    advice = "docs/upgrade.md, `journalctl -u lighterd`; a restart of the manager cleans up"
    for kind, found in kinds.items():
        if found:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            shown = f"{len(found)} {kind}: {', '.join(found[:SHOWN])}{more}"
            yield Finding("leftovers", WARNING, shown, advice)
    if not any(kinds.values()):
        yield Finding("leftovers", OK, f"none beside {len(tasks)} tasks and {len(shims)} shims")


def _tasks(directory: str) -> Iterator[_Task]:
    for namespace in sorted(_directories(directory)):
        for id_ in sorted(_directories(f"{directory}/{namespace}")):
            yield _Task(namespace, id_)


def _ended(database: str) -> set[_Task]:
    """Tasks that have ended and are not deleted: their directory stays, and their shim is gone."""
    if not index.has_room(database):
        return set()
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as opened:
            opened.text_factory = text_of
            rows = opened.execute("SELECT namespace, id FROM tasks WHERE state = 'stopped'")
            return {_Task(*row) for row in rows}
    except sqlite3.Error:
        return set()  # another check says what is wrong with it


def _recorded_pid(state: State, task: _Task) -> int:
    """The pid of the living shim whose record is there; 0 for none."""
    try:
        data = files.read_capped(state.task(*task) + "/shim.json", MAX_RECORD)
        record = json.loads(data or b"null")
    except (OSError, ValueError):
        return 0
    return int(record["pid"]) if isinstance(record, dict) and is_alive(record) else 0


def _running_shims(instance: str) -> Iterator[tuple[int, _Task]]:
    """By their titles, which shim/shim.py gives them."""
    start = f"lighter-shim --instance {instance} --namespace "
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if not may_be_shim(int(name)):
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                title = file.read(MAX_TITLE).rstrip(b"\0").decode(errors="replace")
        except OSError:
            continue
        if title.startswith(start):
            namespace, _, id_ = title.removeprefix(start).partition(" --id ")
            yield int(name), _Task(namespace, id_)


def _mounts(directory: str, tasks: set[_Task]) -> Iterator[str]:
    """Below the tasks' directory, where no task's directory is: proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        points = [line.split()[4] for line in file]
    for point in points:
        if point.startswith(directory + "/"):
            namespace, _, rest = point.removeprefix(directory + "/").partition("/")
            if _Task(namespace, rest.partition("/")[0]) not in tasks:
                yield point


def _cgroups(instance: str, tasks: set[_Task]) -> Iterator[str]:
    """At the usual place of containers, in each hierarchy; a container may be told another."""
    folders = [_CGROUPS, *(f"{_CGROUPS}/{name}" for name in sorted(_directories(_CGROUPS)))]
    for folder in folders:
        top = f"{folder}/lighter/{instance}"
        for namespace in sorted(_directories(top)):
            for id_ in sorted(_directories(f"{top}/{namespace}")):
                if _Task(namespace, id_) not in tasks:
                    yield f"{top}/{namespace}/{id_}"


def _directories(path: str) -> set[str]:
    """The names of those in a directory, which may be gone."""
    try:
        return {entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _files(path: str) -> set[str]:
    """The same of files: a netns is mounted on one."""
    try:
        return {entry.name for entry in os.scandir(path) if not entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
