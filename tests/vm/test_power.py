"""Power cuts: what the manager has acknowledged is on the disk, and nothing half made is shown.

The disk here has a volatile cache that is lost with the power, in the harshest way: see
powercut.py. So this tells whether every flush is where it has to be: fsync of files, of their
directories, of SQLite's log, of an unpacked layer. It does not tell what a disk does that keeps
some of the later writes and loses others: of those only the file system's journal, and SQLite's
checksums, are asked here. The test of a machine that starts again is for the last cut, amid work.
"""

import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import IO

import pytest

from tests import images
from tests.images import REFERENCE
from tests.vm import powercut
from tests.vm.beside import Beside
from tests.vm.disks import Disks
from tests.vm.installed import Installed
from tests.vm.life import Cut

ROOT = "var/lib/lighter"
CUTS = 24


@pytest.fixture(scope="module")
def cut(beside: Beside) -> Cut:
    return beside.cut()


@pytest.fixture(scope="module")
def base(disks: Disks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The disk before that life. What is looked at has been written in it."""
    work = tmp_path_factory.mktemp("base")
    powercut.without_data(disks.installed.image, work / "disk.raw")
    yield work / "disk.raw"
    shutil.rmtree(work)  # pytest would keep it for three runs


def image(root: Path, database: sqlite3.Connection) -> None:
    """It is listed, its content is whole, and so is the layer that was unpacked from it."""
    named = database.execute("SELECT name FROM images WHERE namespace = 'default'").fetchall()
    assert named == [(REFERENCE,)]
    blobs = database.execute("SELECT digest, size_bytes FROM content").fetchall()
    assert len(blobs) >= 3
    for digest, size_bytes in blobs:
        data = (root / "content/blobs" / digest.replace(":", "/")).read_bytes()
        assert len(data) == size_bytes
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    layers = database.execute(
        "SELECT number FROM snapshots WHERE kind = 'committed' AND namespace = 'default'"
    ).fetchall()
    assert len(layers) == 1


def container(_root: Path, database: sqlite3.Connection) -> None:
    rows = database.execute("SELECT spec, snapshotter FROM containers WHERE id = 'kept'").fetchall()
    assert len(rows) == 1
    assert json.loads(rows[0][0])["ociVersion"]


def exit_(_root: Path, database: sqlite3.Connection) -> None:
    row = database.execute("SELECT state, exit_status FROM tasks WHERE id = 'seven'").fetchone()
    assert row == ("stopped", 7)


def run(_root: Path, database: sqlite3.Connection) -> None:
    assert database.execute("SELECT id FROM containers WHERE id = 'runs'").fetchall()


def namespace(_root: Path, database: sqlite3.Connection) -> None:
    assert ("other",) in database.execute("SELECT name FROM namespaces").fetchall()


CHECKS: dict[str, Callable[[Path, sqlite3.Connection], None]] = {
    "image": image,
    "container": container,
    "exit": exit_,
    "run": run,
    "namespace": namespace,
}


def half_made(root: Path, database: sqlite3.Connection) -> Iterator[str]:
    """What no cut may leave: records without the things that they are about."""
    (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    if integrity != "ok":
        yield f"database: {integrity}"
    for (digest,) in database.execute("SELECT digest FROM content"):
        blob = root / "content/blobs" / digest.replace(":", "/")
        if not blob.exists() or hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
            yield f"content {digest} is not whole"
    for name, known in database.execute(
        "SELECT name, content.digest FROM images LEFT JOIN content USING(namespace, digest)"
    ):
        if known is None:
            yield f"image {name} has no content"
    for name, number in database.execute(
        "SELECT snapshotter, number FROM snapshots WHERE kind = 'committed'"
    ):
        if files_of(root / "snapshots" / name / str(number) / "fs") != files_of_the_layer():
            yield f"layer {number} is not whole"
    for id_, known in database.execute(
        "SELECT id, key FROM containers LEFT JOIN snapshots"
        " ON key = snapshot_key AND snapshots.namespace = containers.namespace"
        " WHERE snapshot_key != ''"
    ):
        if known is None:
            yield f"container {id_} has no snapshot"


def files_of(directory: Path) -> dict[str, str]:
    """The digest of each regular file, by its path; {} for no directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@cache
def files_of_the_layer() -> dict[str, str]:
    """The same of the layer in the image's archive."""
    with tarfile.open(images.busybox_archive()) as archive:
        (index,) = json.load(_member(archive, "index.json"))["manifests"]
        manifest = json.load(_member(archive, _blob(index)))
        with tarfile.open(fileobj=_member(archive, _blob(manifest["layers"][0]))) as layer:
            return {
                entry.name: hashlib.sha256(_member(layer, entry.name).read()).hexdigest()
                for entry in layer
                if entry.isreg()
            }


def _blob(descriptor: dict[str, str]) -> str:
    return "blobs/" + descriptor["digest"].replace(":", "/")


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file is not None
    return file


@pytest.mark.parametrize("moment", CHECKS)
def test_what_was_acknowledged_is_on_the_disk(
    cut: Cut, base: Path, tmp_path: Path, moment: str
) -> None:
    """F50: the power is cut right after the answer: what it was about, and all before, is there."""
    before = list(CHECKS)[: list(CHECKS).index(moment) + 1]
    up_to = powercut.last_flush(cut.log, cut.answered[moment])
    look(base, cut, up_to, tmp_path, before)


def test_what_was_acknowledged_is_on_the_disk_after_the_last_cut(
    cut: Cut, base: Path, tmp_path: Path
) -> None:
    """F50: the cut amid work."""
    look(base, cut, powercut.last_flush(cut.log, cut.end), tmp_path, list(CHECKS))


def test_no_cut_leaves_a_record_of_something_half_made(
    cut: Cut, base: Path, tmp_path: Path
) -> None:
    """F50: cuts all over the manager's life, at flushes that nobody has chosen."""
    flushes = [e.end for e in powercut.entries(cut.log, cut.end) if e.is_flush]
    flushes = [end for end in flushes if end > cut.began]
    assert len(flushes) > CUTS
    for up_to in (flushes[n * len(flushes) // CUTS] for n in range(CUTS)):
        known = [what for what in CHECKS if cut.answered[what] < up_to]
        look(base, cut, up_to, tmp_path, known)


def look(base: Path, cut: Cut, up_to: int, folder: Path, expected: list[str]) -> None:
    image = folder / "disk.raw"
    with ExitStack() as undo:
        undo.callback(image.unlink, missing_ok=True)
        powercut.replay(base, cut.log, up_to, image)
        mounted = undo.enter_context(powercut.Mounted(image, folder / "mounted"))
        root = mounted / ROOT
        database = undo.enter_context(closing(sqlite3.connect(root / "lighter.db")))
        for what in expected:
            CHECKS[what](root, database)
        assert not list(half_made(root, database)), f"cut at {up_to} of {cut.end}"


def test_the_machine_starts_again_and_goes_on(beside: Beside) -> None:
    """F50, F55: a boot after the cut. Tasks that ran read stopped, for a reboot."""
    machine = beside.again()
    host = Installed(machine)
    host.await_manager()
    host.await_status("unless", "running")
    tasks = host.tasks()
    assert (tasks["seven"]["status"], tasks["seven"]["exit_status"]) == ("stopped", 7)
    assert (tasks["runs"]["status"], tasks["runs"]["exit_status"]) == ("stopped", 255)
    assert '"reboot"' in host.ctl("inspect", "runs").text
    assert "Exited (255, reboot)" in host.ctl("ps", "-a").text
    containers = host.ctl("containers", "ls", "-q").text.split()
    assert {"kept", "seven", "runs", "unless"} <= set(containers)
    host.ctl("tasks", "start", "-d", "kept")
    host.ctl("tasks", "delete", "runs")
    host.ctl("tasks", "start", "-d", "runs")
    assert host.task("runs")["status"] == "running"
    done = host.ctl("run", "--rm", REFERENCE, "new", "sh", "-c", "exit 5", check=False)
    assert done.code == 5, done.stderr
    host.clear()
    assert host.tasks() == {}
    assert machine.run("systemctl --failed --no-legend").text == ""
