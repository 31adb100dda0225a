"""F51: system calls of a running manager, and of its workers, fail with EIO: strace sees to it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lighter.proto import errors
from tests import lives
from tests.harness import Lighterd, await_that
from tests.integration.test_check import check
from tests.lives import ask
from tests.processes import spawners
from tests.unit.images.build import Layout

SYNCS = "fsync,fdatasync,syncfs"
READS = "read,pread64,readv,preadv,preadv2,sendfile,copy_file_range"


@contextmanager
def failing(
    lighterd: Lighterd, calls: str, when: str = "1+", *, pid: int = 0, file: Path | None = None
) -> Iterator[Callable[[], int]]:
    """The calls of this kind fail: in each thread of the manager, or of `pid` and of each child
    that it forks, those which `when` says, on this file alone if there is one.

    Yields what tells how many have failed.
    """
    pid = pid or lighterd.pid
    said = lighterd.base / "strace"
    argv = ["strace", "-f", "-qq", "-p", str(pid), "-o", str(said), "-e", f"trace={calls}"]
    argv += ["-e", f"inject={calls}:error=EIO:when={when}"]
    argv += ["-P", str(file)] if file else []
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as tracer:
        try:
            await_that(lambda: is_traced(pid), 20, "strace is attached")
            yield lambda: said.read_text().count("(INJECTED)")
        finally:
            tracer.terminate()


def is_traced(pid: int) -> bool:
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with suppress(OSError):  # a thread that has ended meanwhile
            if "TracerPid:\t0\n" in path.read_text():
                return False
    return True


def archive_of(lighterd: Lighterd, name: str) -> Path:
    layout = Layout()
    layout.list(layout.image([{"file": os.urandom(30_000)}]), name=name)
    path = lighterd.base / "archive"
    path.write_bytes(layout.archive())
    return path


def names(lighterd: Lighterd, noun: str, key: str) -> set[str]:
    listed = ask(lighterd, f"{noun}.list", cursor="", limit=500)[noun]
    return {row[key] for row in listed}


@pytest.mark.timeout(600)
def test_f51_a_failed_sync_fails_what_waits_for_it_and_nothing_else(lighterd: Lighterd) -> None:
    image = lighterd.import_busybox()
    pid = lives.begin(lighterd, image, "running", "sleep", "1000")
    containers, imported = {"running"}, {image}
    (spawner,) = spawners(lighterd.instance)
    turns = [(str(number), of) for of in (0, spawner) for number in range(1, 5)]
    for number, (when, of) in enumerate([("1+", 0), *turns]):
        container, name = f"c{number}", f"docker.io/library/other:{number}"
        archive = archive_of(lighterd, name)
        with failing(lighterd, SYNCS, when, pid=of) as failed:
            try:
                lives.define(lighterd, image, container, "true")
                containers.add(container)
            except errors.DataLoss:
                assert failed()
            try:
                lighterd.import_archive(archive)
                imported.add(name)
            except errors.DataLoss:
                assert failed()
            assert failed(), (when, of)
            if when == "1+":
                assert container not in containers and name not in imported
            # Who waits for no disk is served.
            assert ask(lighterd, "tasks.list")["tasks"][0]["pid"] == pid
            assert names(lighterd, "containers", "id") == containers
        # With the disk it is there and the same again works.
        if container not in containers:
            lives.define(lighterd, image, container, "true")
            containers.add(container)
        lighterd.import_archive(archive)
        imported.add(name)
    assert lighterd.ctl("exec", "running", "true").returncode == 0
    lighterd.kill9()
    lighterd.start()
    assert names(lighterd, "containers", "id") == containers
    assert names(lighterd, "images", "name") == imported
    assert check(lighterd)[1]["findings"] == []
    assert lives.await_task(lighterd, "running", "running")["pid"] == pid


def test_f51_content_that_cannot_be_read_is_named_and_nothing_else_fails(
    lighterd: Lighterd,
) -> None:
    image = lighterd.import_busybox()
    blobs = lighterd.root / "content/blobs/sha256"
    blob = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    digest = f"sha256:{blob.name}"
    with failing(lighterd, READS, file=blob) as failed:
        refused = lighterd.ctl("content", "get", digest)
        assert refused.returncode == 1 and failed()
        why = f"ctl: read content {digest}: Input/output error: {blob}\n"
        assert refused.stderr.decode() == why
        status, said = check(lighterd)
        assert status == 1
        assert [(one["kind"], one["name"]) for one in said["findings"]] == [("content", digest)]
        # What is unpacked needs none of it.
        ran = lighterd.ctl("run", "--rm", image, "new", "echo", "runs")
        assert ran.stdout == b"runs\n", ran.stderr
    assert lighterd.ctl("content", "get", digest).returncode == 0
    assert check(lighterd)[0] == 0
