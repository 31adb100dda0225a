"""A damaged database, garbage in its place or none, and records that are none: what still holds."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.names import BROKEN_LABEL
from tests import lives
from tests.harness import Lighterd, await_that
from tests.lives import ask


def page_of(table: str) -> Callable[[Path], None]:
    """Overwrites the page that a table begins at."""

    def zero(database: Path) -> None:
        with closing(sqlite3.connect(database)) as opened:
            size = opened.execute("PRAGMA page_size").fetchone()[0]
            root = opened.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()[0]
            opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with database.open("r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)

    return zero


def garbage(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(b"\0garbage" * 1000)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


def truncated(database: Path) -> None:
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(database, database.stat().st_size // 2)


def missing(database: Path) -> None:
    for file in database.parent.glob("lighter.db*"):
        file.unlink()


@pytest.fixture
def expendable(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    """A running instance whose data a test destroys: what no row names any more is removed here."""
    lighterd = make_lighterd().start()
    yield lighterd
    if lighterd.process is not None and lighterd.process.poll() is None:
        lighterd.stop()
    shutil.rmtree(lighterd.root)
    lighterd.root.mkdir()


def kept_files(lighterd: Lighterd) -> set[str]:
    """Blobs, snapshots and logs."""
    found = set((lighterd.root / "content/blobs/sha256").iterdir())
    found |= set((lighterd.root / "snapshots").glob("*/*"))
    found |= set((lighterd.root / "logs").glob("*/*"))
    return {str(path) for path in found if not path.name.startswith("new-")}


@pytest.mark.parametrize(
    ("harm", "lost"),
    [
        (page_of("events"), "lost: rows of events"),
        (page_of("tasks"), "lost: rows of tasks"),
        (page_of("images"), "lost: rows of images"),
        (page_of("containers"), "lost: rows of containers"),
        (page_of("content"), "lost: rows of content"),
        (truncated, ""),
        (garbage, "nothing of it can be read"),
    ],
    ids=["events", "tasks", "images", "containers", "content", "truncated", "garbage"],
)
def test_f53_a_damaged_database_costs_no_container_and_no_file(
    expendable: Lighterd, harm: Callable[[Path], None], lost: str
) -> None:
    lighterd = expendable
    image = lighterd.import_busybox()
    pid = lives.begin(
        lighterd, image, "c", "sh", "-c", "trap 'exit 6' TERM; while :; do wait; done"
    )
    lives.begin(lighterd, image, "ended", "sh", "-c", "exit 3")
    lives.await_task(lighterd, "ended", "stopped")
    lives.define(lighterd, image, "defined", "true")  # its row alone tells whose its root is
    lighterd.restart()  # generations have been counted
    before = kept_files(lighterd)
    lighterd.kill9()
    harm(lighterd.root / "lighter.db")
    lighterd.start()
    row = lives.await_task(lighterd, "c", "running")
    assert row["pid"] == pid
    log = lighterd.log_end(1 << 20)
    assert "is damaged" in log and "is mended; " in log
    assert lost in ask(lighterd, "system.health")["loss"]
    assert len(list(lighterd.root.glob("lighter.db.damaged-*"))) in (1, 2)
    # Nothing was tidied away for want of its row, by the start or by a further one.
    lighterd.restart()
    assert before <= kept_files(lighterd)
    lives.await_task(lighterd, "c", "running")
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGTERM, all=False)
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 6
    said = lighterd.ctl("system", "accept-loss", check=True).stdout.decode()
    assert "the damaged file is" in said
    assert ask(lighterd, "system.health")["loss"] == ""
    assert lighterd.ctl("system", "accept-loss", check=True).stdout == b"nothing is lost\n"
    assert lives.process_state(pid) == ""
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    await_that(lambda: not lighterd.shims(), 20, "no shim is left")


@pytest.mark.parametrize("harm", ["empty", "missing"])
def test_f53_with_nothing_in_the_databases_place_no_file_goes(
    expendable: Lighterd, harm: str
) -> None:
    """Nothing runs that could tell that there was one: what is on the disk does."""
    lighterd = expendable
    image = lighterd.import_busybox()
    lives.define(lighterd, image, "c", "true")
    before = kept_files(lighterd)
    lighterd.kill9()
    database = lighterd.root / "lighter.db"
    missing(database)
    if harm == "empty":
        database.touch(0o600)
    lighterd.start()
    assert "was not there" in ask(lighterd, "system.health")["loss"]
    lighterd.restart()
    assert before <= kept_files(lighterd)


def test_f53_without_a_database_running_containers_are_adopted(expendable: Lighterd) -> None:
    lighterd = expendable
    image = lighterd.import_busybox()
    pid = lives.begin(lighterd, image, "c", "sleep", "1000")
    for _ in range(3):  # a shim heeds no lower generation than it has seen
        lighterd.restart()
    lives.await_task(lighterd, "c", "running")
    before = kept_files(lighterd)
    lighterd.kill9()
    missing(lighterd.root / "lighter.db")
    lighterd.start()
    await_that(lambda: lives.task(lighterd, "c").get("pid") == pid, 20, "it is adopted")
    lives.await_task(lighterd, "c", "running")
    assert "was not there" in ask(lighterd, "system.health")["loss"]
    lighterd.restart()
    assert before <= kept_files(lighterd)
    lives.await_task(lighterd, "c", "running")
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGKILL, all=False)
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 137
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    await_that(lambda: not lighterd.shims(), 20, "no shim is left")


@pytest.mark.parametrize("restarts", [0, 3])
def test_f53_an_older_copy_of_the_database_ends_no_container(
    expendable: Lighterd, restarts: int
) -> None:
    """The container was started again since the copy was made, and the manager too."""
    lighterd = expendable
    image = lighterd.import_busybox()
    script = ["sh", "-c", "trap 'exit 6' TERM; while :; do wait; done"]
    lives.begin(lighterd, image, "c", *script)
    lives.begin(lighterd, image, "same", "sleep", "1000")
    database = lighterd.root / "lighter.db"
    copy = lighterd.base / "copy.db"
    with closing(sqlite3.connect(database)) as opened, closing(sqlite3.connect(copy)) as to:
        opened.backup(to)
    lighterd.ctl("restart", "c", check=True)
    # What its shim has told and heard to be known, it does not tell again.
    lighterd.ctl("pause", "same", check=True)
    lighterd.ctl("resume", "same", check=True)
    pids = {name: lives.await_task(lighterd, name, "running")["pid"] for name in ("c", "same")}
    for _ in range(restarts):
        lighterd.restart()
    lighterd.kill9()
    missing(database)
    shutil.copy(copy, database)
    lighterd.start()
    for name, pid in pids.items():
        await_that(
            lambda name=name, pid=pid: lives.task(lighterd, name).get("pid") == pid,
            *(20, "it is adopted"),
        )
        assert lives.await_task(lighterd, name, "running")["pid"] == pid
    assert ("older copy" in ask(lighterd, "system.health")["loss"]) is bool(restarts)
    for name in pids:
        done = lighterd.ctl("exec", name, "echo", "here", check=True)
        assert done.stdout == b"here\n"
    assert lives.task(lighterd, "c")["started_at"]
    ask(lighterd, "tasks.kill", id="c", exec_id="", signal=signal.SIGTERM, all=False)
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 6
    ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    # Rows that are back need no shim: it is started again as ever.
    lighterd.ctl("start", "c", check=True)
    lives.await_task(lighterd, "c", "running")
    ask(lighterd, "tasks.kill", id="same", exec_id="", signal=signal.SIGKILL, all=False)
    ended = ask(lighterd, "tasks.wait", id="same", exec_id="")
    assert (ended["exit_status"], ended["cause"]) == (137, "")
    lighterd.ctl("rm", "-f", "c", "same", check=True)
    await_that(lambda: not lighterd.shims(), 20, "no shim is left")


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"pid": "x", "start": null}',
        b'{"pid": -1, "start": 1, "protocols": "all"}',
        b'{"pid": 99999999999999999999, "start": 1, "boot_id": 7}',
    ],
)
def test_f54_a_bad_record_of_a_shim_harms_nobody(lighterd: Lighterd, record: bytes) -> None:
    """Its task is found by its row, others by theirs; no start and no check fails for it."""
    image = lighterd.import_busybox()
    pids = {name: lives.begin(lighterd, image, name, "sleep", "1000") for name in ("bad", "good")}
    lighterd.kill9()
    (lighterd.state / "tasks/default/bad/shim.json").write_bytes(record)
    for name in ("stray", "empty"):
        bundle = lighterd.state / "tasks/default" / name
        bundle.mkdir()
        if name == "stray":
            (bundle / "shim.json").write_bytes(record)
    (lighterd.state / "tasks/default/no-directory").write_bytes(record)
    lighterd.start()
    for name, pid in pids.items():
        assert lives.await_task(lighterd, name, "running")["pid"] == pid
    assert ask(lighterd, "system.shims")["shims"]
    assert lighterd.ctl("upgrade", "check").returncode == 0
    for name in pids:
        ask(lighterd, "tasks.kill", id=name, exec_id="", signal=signal.SIGKILL, all=False)
        assert ask(lighterd, "tasks.wait", id=name, exec_id="")["exit_status"] == 137
    (lighterd.state / "tasks/default/no-directory").unlink()


@pytest.mark.parametrize("action", ["error", "bug"])
def test_f54_a_task_that_cannot_be_judged_harms_nobody(lighterd: Lighterd, action: str) -> None:
    """Whatever is wrong with it: the start goes on, and its shim is heard when it says hello."""
    image = lighterd.import_busybox()
    pids = {name: lives.begin(lighterd, image, name, "sleep", "1000") for name in ("bad", "good")}
    lighterd.kill9()
    lighterd.start(FAULT=f"recover.entry:{action}")
    for name, pid in pids.items():
        assert lives.await_task(lighterd, name, "running")["pid"] == pid
    assert "pass fault point recover.entry" in lighterd.log.read_text()


def test_f54_a_bad_row_harms_nobody(lighterd: Lighterd) -> None:
    """What cannot be read is listed as broken and can be removed; all else lives, is made, runs."""
    image = lighterd.import_busybox()
    names = ("good", "options", "labels", "array", "health", "spec")
    pids = {name: lives.begin(lighterd, image, name, "sleep", "1000") for name in names}
    for name in ("idle", "idle-spec"):
        lives.define(lighterd, image, name, "true")
    for argv in (
        ("images", "tag", image, "docker.io/library/bad:1"),
        ("images", "tag", image, "docker.io/library/bad:2"),
        ("leases", "create", "--id", "bad"),
        ("namespaces", "create", "bad"),
        ("volumes", "create", "bad"),
        ("snapshots", "prepare", "bad"),
    ):
        lighterd.ctl(*argv, check=True)
    lighterd.kill9()
    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
        for change in (
            "UPDATE containers SET options = '{' WHERE id IN ('options', 'idle')",
            "UPDATE containers SET labels = x'ff00' WHERE id = 'labels'",
            "UPDATE containers SET labels = '[]', options = '[]' WHERE id = 'array'",
            "UPDATE containers SET options = json_set(options, '$.health', 5) WHERE id = 'health'",
            "UPDATE containers SET options = json_set(options, '$.restart', 5) WHERE id = 'health'",
            "UPDATE containers SET spec = x'00' WHERE id IN ('spec', 'idle-spec')",
            "UPDATE tasks SET options = x'c1' WHERE id = 'good'",
            "UPDATE images SET labels = '{' WHERE name LIKE '%bad:1'",
            "UPDATE images SET annotations = '{' WHERE name LIKE '%bad:2'",
            "UPDATE leases SET labels = '{'",
            "UPDATE namespaces SET labels = '{' WHERE name = 'bad'",
            "UPDATE volumes SET labels = '{'",
            "UPDATE snapshots SET labels = '{'",
        ):
            assert opened.execute(change).rowcount, change
        opened.commit()
    lighterd.start()
    for name, pid in pids.items():
        assert lives.await_task(lighterd, name, "running")["pid"] == pid
    # Each is shown as what it is, in the list that it is in, and the others as they are.
    said = {row["id"]: row for row in rows_of(lighterd, "containers", "ls")}
    assert set(said) == {*names, "idle", "idle-spec"}
    assert {name: row["labels"][BROKEN_LABEL] for name, row in said.items() if row["labels"]} == {
        "options": "options",
        "idle": "options",
        "labels": "labels",
        "array": "labels,options",
    }
    listed = lighterd.ctl("ps", "-a", check=True).stdout.decode()
    assert listed.count("its record is damaged: ") == 4
    table = lighterd.ctl("containers", "ls", check=True)
    assert b"container idle: its record is damaged: options cannot be read" in table.stderr
    found = lighterd.ctl("ps", "-aq", "--filter", f"label={BROKEN_LABEL}=options", check=True)
    assert set(found.stdout.split()) == {b"options", b"idle"}
    for noun, key in (
        ("images", "name"),
        ("leases", "id"),
        ("namespaces", "name"),
        ("volumes", "name"),
    ):
        broken = [
            row[key]
            for row in rows_of(lighterd, noun, "ls")
            if BROKEN_LABEL in (row["labels"] or {})
        ]
        assert len(broken) == (2 if noun == "images" else 1), (noun, broken)
        assert all("bad" in name for name in broken)
    info = lighterd.ctl("snapshots", "info", "bad", check=True).stdout.decode()
    assert f'"{BROKEN_LABEL}": "labels"' in info
    # A definition that is not whole is not guessed at: neither started nor changed nor renamed.
    for argv in (
        ("tasks", "start", "-d", "idle"),
        ("tasks", "start", "-d", "idle-spec"),
        ("containers", "label", "idle", "a=b"),
        ("rename", "idle", "other"),
    ):
        refused = lighterd.ctl(*argv)
        assert refused.returncode != 0 and refused.stderr.count(b"\n") == 1, refused
    # What such a record may need is not taken away.
    lighterd.ctl("volumes", "prune", "--all", "--force")
    assert [row["name"] for row in rows_of(lighterd, "volumes", "ls")] == ["bad"]
    # The manager does all its work: others are made, run, and are collected.
    assert lighterd.ctl("run", "--rm", image, "new", "sh", "-c", "exit 4").returncode == 4
    assert lighterd.ctl("tasks", "exec", "--exec-id", "x", "good", "true").returncode == 0
    lighterd.ctl("system", "prune", check=True)
    # And each goes as any other does.
    for name in (*names, "idle", "idle-spec"):
        lighterd.ctl("rm", "-f", name, check=True)
    for argv in (
        ("images", "rm", "docker.io/library/bad:1", "docker.io/library/bad:2"),
        ("leases", "rm", "bad"),
        ("namespaces", "rm", "bad"),
        ("volumes", "rm", "bad"),
        ("snapshots", "rm", "bad"),
    ):
        lighterd.ctl(*argv, check=True)
    assert rows_of(lighterd, "containers", "ls") == []
    assert BROKEN_LABEL not in lighterd.ctl("ps", "-a", check=True).stdout.decode()


def rows_of(lighterd: Lighterd, *words: str) -> list[dict[str, Any]]:
    shown = lighterd.ctl(*words, "--format", "json", check=True).stdout
    rows: list[dict[str, Any]] = json.loads(shown)
    return rows


def test_f55_a_process_that_has_an_old_ones_pid_is_left_alone(lighterd: Lighterd) -> None:
    """Row and record are of another boot, and name a process that lives, by pid and start."""
    image = lighterd.import_busybox()
    lives.begin(lighterd, image, "c", "true")
    lives.await_task(lighterd, "c", "stopped")
    await_that(lambda: not lighterd.shims(), 20, "its shim has ended")
    (record,) = (lighterd.state / "tasks/default").glob("c/shim.json")
    said = json.loads(record.read_text())
    lighterd.kill9()
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            stat = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()
            row = {"pid": stranger.pid, "shim_pid": stranger.pid, "shim_start": int(stat[19])}
            with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
                opened.execute(
                    "UPDATE tasks SET state = 'running', closed = 0, exit_status = NULL,"
                    " exited_at = NULL, cause = '', boot_id = 'another', pid = :pid,"
                    " shim_pid = :shim_pid, shim_start = :shim_start",
                    row,
                )
                opened.commit()
            process = {"pid": stranger.pid, "start": int(stat[19]), "boot_id": "another"}
            record.write_text(json.dumps({**said, **process}))
            (lighterd.root / "exits/default/c.json").unlink(missing_ok=True)
            lighterd.start()
            task = lives.await_task(lighterd, "c", "stopped")
            assert (task["exit_status"], task["cause"]) == (255, "reboot")
            assert lighterd.ctl("kill", "-s", "KILL", "c").returncode == 1
            lighterd.ctl("rm", "-f", "c", check=True)
            lighterd.restart()
            assert stranger.poll() is None
        finally:
            stranger.kill()
