"""F49: root and state on an ext4 of 64 MiB that is full, or on which the next few writes still fit.

Nothing else is on it, so how much is free when a call begins decides which of its writes is the
first to fail.
"""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto import errors
from lighter.proto.release import OWN
from tests import lives, loopdisk
from tests.harness import Lighterd, await_that
from tests.integration.test_check import check
from tests.lives import NO_STDIO, ask
from tests.unit.images.build import Layout

TRAP = ("sh", "-c", "trap 'exit 6' TERM; while :; do wait; done")
IMPORTED = "docker.io/library/other:1"


class Disk:
    """The file system, the instance on it, and what takes away its room."""

    def __init__(self, directory: Path, lighterd: Lighterd) -> None:
        self.directory = directory
        self.lighterd = lighterd
        self.block_bytes = os.statvfs(directory).f_bsize
        self.reserve = lighterd.root / "lighter.db-reserve"
        self._filler = directory / "filler"
        self._files = directory / "files"

    def fill(self, free_bytes: int = 0) -> None:
        """Leave this much, beside what the database holds in reserve."""
        fd = os.open(self._filler, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            for step_bytes in (1 << 20, 1 << 16, self.block_bytes):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(fd, os.fstat(fd).st_size, step_bytes)
            end = os.fstat(fd).st_size // self.block_bytes * self.block_bytes
            os.ftruncate(fd, end - free_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)

    def fill_all(self, free_bytes: int = 0) -> None:
        """Leave this much and no reserve. What the database writes next needs space again."""
        self.empty()
        with contextlib.closing(sqlite3.connect(self.lighterd.root / "lighter.db")) as opened:
            opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.reserve.unlink(missing_ok=True)
        self.fill(free_bytes)

    def leave_blocks(self, count: int) -> None:
        self.fill_all(count * self.block_bytes)

    def leave_files(self, count: int) -> None:
        """No more than this many can be made."""
        self._files.mkdir(exist_ok=True)
        names = [int(name) for name in os.listdir(self._files)]
        number = max(names, default=0)
        with contextlib.suppress(OSError):
            while True:
                number += 1
                os.mknod(self._files / str(number))
        for name in os.listdir(self._files)[:count]:
            (self._files / name).unlink()

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)
        shutil.rmtree(self._files, ignore_errors=True)


@pytest.fixture
def mounted(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where it is; the test's parameter are options of mkfs."""
    directory = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    try:
        with loopdisk.ext4_at(directory, *getattr(request, "param", ())):
            yield directory
    finally:
        directory.rmdir()


@pytest.fixture
def disk(mounted: Path, tmp_path: Path, make_lighterd: Callable[..., Lighterd]) -> Iterator[Disk]:
    lighterd = make_lighterd(under=str(mounted))
    lighterd.log = tmp_path / "log"
    disk = Disk(mounted, lighterd)
    yield disk
    disk.empty()


def test_f49_what_ends_and_what_frees_works_on_a_full_disk(disk: Disk) -> None:
    lighterd = disk.lighterd
    image = lighterd.start().import_busybox()
    lives.await_handler(lives.begin(lighterd, image, "stopped", *TRAP), signal.SIGTERM)
    pid = lives.begin(lighterd, image, "killed", "sleep", "1000")
    lighterd.ctl("content", "ingest", "stray", input=os.urandom(300_000), check=True)
    assert disk.reserve.exists()
    disk.fill()
    later = {**OWN._asdict(), "protocols": list(OWN.protocols), "schema": OWN.schema + 1}
    (warned,) = ask(lighterd, "system.upgrade_check", **later)["warnings"]
    assert re.fullmatch(r"no room to copy the database .* \d+ bytes in .*, \d+ are free", warned)
    lighterd.ctl("stop", "stopped", check=True)
    assert ask(lighterd, "tasks.wait", id="stopped", exec_id="")["exit_status"] == 6
    lighterd.restart()
    assert lives.await_task(lighterd, "killed", "running")["pid"] == pid
    lighterd.ctl("kill", "-s", "KILL", "killed", check=True)
    assert ask(lighterd, "tasks.wait", id="killed", exec_id="")["exit_status"] == 137
    lighterd.ctl("rm", "stopped", "killed", check=True)
    lighterd.ctl("rmi", image, check=True)
    lighterd.ctl("system", "prune", check=True)
    blobs = lighterd.root / "content/blobs/sha256"
    await_that(lambda: not os.listdir(blobs), 20, "the image's content and the stray one are gone")
    disk.empty()
    image = lighterd.import_busybox()
    assert lighterd.ctl("run", "--rm", image, "new", "echo", "runs").stdout == b"runs\n"
    assert check(lighterd)[0] == 0


@pytest.mark.parametrize(
    ("mounted", "counts"),
    [
        pytest.param((), (0, 1, 2, 3), id="blocks-of-4-KiB"),
        # Too few for the mapped index of the log, a hole in which would end the manager.
        pytest.param(("-b", "1024"), (0, 9, 14, 40), id="blocks-of-1-KiB"),
    ],
    indirect=["mounted"],
)
def test_f49_with_no_block_left_an_end_is_told_later(disk: Disk, counts: tuple[int, ...]) -> None:
    """What was held in reserve is used up too: no manager starts, and it says why."""
    lighterd = disk.lighterd
    image = lighterd.start().import_busybox()
    for name in ("killed", "alone"):
        lives.begin(lighterd, image, name, "sleep", "1000")
    pids = {name: lives.task(lighterd, name)["pid"] for name in ("killed", "alone")}
    disk.fill_all()
    ask(lighterd, "tasks.kill", id="killed", exec_id="", signal=signal.SIGKILL, all=False)
    await_that(lambda: lives.process_state(pids["killed"]) in ("", "Z"), 20, "it has ended")
    assert lighterd.stop() == 0
    os.kill(pids["alone"], signal.SIGKILL)
    for count in counts:
        disk.leave_blocks(count)
        with pytest.raises(AssertionError, match="lighterd ended with 1"):
            lighterd.start()
        why = lighterd.log_end().splitlines()[-1]
        assert re.fullmatch(f"lighterd: .*{lighterd.base}.* (is full|No space left.*)", why), why
    disk.empty()
    lighterd.start()
    for name in pids:
        assert ask(lighterd, "tasks.wait", id=name, exec_id="")["exit_status"] == 137


BLOCKS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32, 48, 64, 128, 256)
FILES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)


@pytest.mark.parametrize(
    ("mounted", "unit", "counts"),
    [
        pytest.param((), "blocks", BLOCKS, id="blocks"),
        pytest.param(("-N", "1024"), "files", FILES, id="files"),
        pytest.param((), "blocks", range(300), id="every-block", marks=pytest.mark.soak),
        pytest.param(("-N", "1024"), "files", range(70), id="every-file", marks=pytest.mark.soak),
    ],
    indirect=["mounted"],
)
@pytest.mark.timeout(600)
def test_f49_each_write_in_turn_meets_a_full_disk(
    disk: Disk, unit: str, counts: tuple[int, ...]
) -> None:
    """What it is part of fails as that, with the path, leaves nothing, and is done with room."""
    lighterd = disk.lighterd
    image = lighterd.start().import_busybox()
    lives.begin(lighterd, image, "running", "sleep", "1000")
    layout = Layout()
    layout.list(layout.image([{"file": os.urandom(30_000)}]), name=IMPORTED)
    # Not on the disk that is filled.
    archive = lighterd.log.with_name("archive")
    archive.write_bytes(layout.archive())
    leave = disk.leave_blocks if unit == "blocks" else disk.leave_files

    def task() -> None:
        ask(lighterd, "tasks.create", id="new", **NO_STDIO)
        ask(lighterd, "tasks.start", id="new")

    def run() -> None:
        lives.define(lighterd, image, "new", "true")
        task()

    def execute() -> None:
        ask(lighterd, "tasks.exec", id="running", exec_id="x", args=["true"], **NO_STDIO)

    for what, before, call in (
        ("create", None, lambda: lives.define(lighterd, image, "new", "true")),
        ("task", lambda: lives.define(lighterd, image, "new", "true"), task),
        ("run", None, run),
        ("exec", None, execute),
        ("import", None, lambda: lighterd.import_archive(archive)),
    ):
        failed = 0
        for count in counts:
            if before is not None:
                before()
            leave(count)
            try:
                call()
            except errors.ResourceExhausted as err:
                failed += 1
                assert str(disk.directory) in err.message, (what, count)
            else:
                break
            finally:
                disk.empty()
                await_that(lambda: is_gone(lighterd), 30, f"{what}, {count}: nothing is left")
        else:
            raise AssertionError(f"{what} does not work with room for {count} {unit}")
        assert failed, what
        if what == "exec":
            # It may have been too much to write down: who waits for its end need not know.
            assert ask(lighterd, "tasks.wait", id="running", exec_id="x")["exit_status"] == 0
        status, said = check(lighterd)
        assert status == 0, (what, said)
    lighterd.restart()  # which removes the snapshot of a layer that could not be removed then
    lives.await_task(lighterd, "running", "running")


def is_gone(lighterd: Lighterd) -> bool:
    """Whether container "new" is, or was never there."""
    try:
        ask(lighterd, "containers.delete", id="new", force=True)
    except errors.NotFound:
        return True
    except errors.LighterError:
        return False
    return True
