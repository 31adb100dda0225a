"""A damaged database, garbage in its place or none, and records that are none: what still holds."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

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
        (truncated, ""),
        (garbage, "nothing of it can be read"),
    ],
    ids=["events", "tasks", "images", "truncated", "garbage"],
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
    lighterd.restart()  # generations have been counted
    before = kept_files(lighterd)
    lighterd.kill9()
    harm(lighterd.root / "lighter.db")
    lighterd.start()
    row = lives.await_task(lighterd, "c", "running")
    assert row["pid"] == pid
    log = lighterd.log_end()
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


def test_f54_a_bad_row_harms_nobody(lighterd: Lighterd) -> None:
    """A container whose record cannot be read is listed as it is, can be removed; others live."""
    image = lighterd.import_busybox()
    good = lives.begin(lighterd, image, "good", "sleep", "1000")
    lives.define(lighterd, image, "bad", "true")
    lighterd.kill9()
    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
        opened.execute("UPDATE containers SET spec = x'00' WHERE id = 'bad'")
        opened.execute("UPDATE tasks SET options = x'c1' WHERE id = 'good'")
        opened.commit()
    lighterd.start()
    assert lives.await_task(lighterd, "good", "running")["pid"] == good
    refused = lighterd.ctl("tasks", "start", "-d", "bad")
    assert refused.returncode != 0 and refused.stderr.count(b"\n") == 1, refused
    lighterd.ctl("rm", "-f", "bad", check=True)
    assert lighterd.ctl("tasks", "exec", "--exec-id", "x", "good", "true").returncode == 0
