"""Content, leases, collections and the disk's account through a running manager and ctl."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from tests import images
from tests.harness import Lighterd, await_that
from tests.lives import NoAnswer, ask

DATA = os.urandom(300_000)  # more than one item of a stream
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
KEEP = ("--label", "containerd.io/gc.root=x")


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


def digests(lighterd: Lighterd, *words: str) -> set[str]:
    return set(lines(lighterd.ctl(*words, "content", "ls", "-q", check=True).stdout))


def as_json(lighterd: Lighterd, *words: str) -> Any:
    return json.loads(lighterd.ctl(*words, "--format", "json", check=True).stdout)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[str, int]]:
    """(what a manager may open, our end to write)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        yield f"/proc/{os.getpid()}/fd/{read_end}", write_end
    finally:
        os.close(read_end)
        with contextlib.suppress(OSError):
            os.close(write_end)


def ingest(lighterd: Lighterd, source: str, ref: str = "r", **body: Any) -> Any:
    given = {"expected_bytes": 0, "expected_digest": "", "labels": {}, "lease": "", **body}
    with lighterd.client() as client:
        stream = client.stream("content", "ingest", timeout_s=60, ref=ref, source=source, **given)
        for _ in stream:
            pass
        return stream.result


def test_content_goes_in_and_comes_out_with_ctrs_columns(lighterd: Lighterd) -> None:
    lighterd.ctl(
        "content",
        "ingest",
        "--expected-size",
        str(len(DATA)),
        "--expected-digest",
        DIGEST,
        *KEEP,
        "mine",
        input=DATA,
        check=True,
    )
    assert lighterd.ctl("content", "get", DIGEST, check=True).stdout == DATA
    header, row = lines(lighterd.ctl("content", "ls", check=True).stdout)
    assert header.split() == ["DIGEST", "SIZE", "AGE", "LABELS"]
    assert row.split(maxsplit=2)[:2] == [DIGEST, "300kB"]
    assert row.endswith("containerd.io/gc.root=x")
    assert lines(lighterd.ctl("content", "label", DIGEST, "a=b", check=True).stdout) == [
        "a=b,containerd.io/gc.root=x"
    ]
    assert lines(lighterd.ctl("content", "rm", DIGEST, check=True).stdout) == [DIGEST]
    assert digests(lighterd) == set()
    missing = lighterd.ctl("content", "get", DIGEST)
    assert missing.returncode == 1
    assert b"there is none in namespace default" in missing.stderr


def test_wrong_content_is_refused_and_the_next_try_works(lighterd: Lighterd) -> None:
    words = ("content", "ingest", "--expected-digest", DIGEST, *KEEP, "mine")
    wrong = lighterd.ctl(*words, input=b"x" + DATA[1:])
    assert wrong.returncode == 1
    assert b"commit ingest mine: its 300000 bytes have the digest" in wrong.stderr
    long = lighterd.ctl("content", "ingest", "--expected-size", "10", "long", input=DATA)
    assert b"its source has more than the 10 bytes that are expected" in long.stderr
    assert digests(lighterd) == set()
    assert as_json(lighterd, "content", "active") == []  # no rest makes these the right bytes
    lighterd.ctl(*words, input=DATA, check=True)
    assert digests(lighterd) == {DIGEST}


def test_an_edited_copy_is_new_content(lighterd: Lighterd) -> None:
    lighterd.ctl("content", "ingest", *KEEP, "mine", input=b"one\n", check=True)
    (old,) = digests(lighterd)
    edited = lighterd.ctl("content", "edit", "--editor", "sed -i s/one/two/", old, check=True)
    new = "sha256:" + hashlib.sha256(b"two\n").hexdigest()
    assert lines(edited.stdout) == [new]
    assert b"ended with 1" in lighterd.ctl("content", "edit", "--editor", "false", old).stderr


def test_fifty_writers_of_one_ref(lighterd: Lighterd) -> None:
    results: list[Any] = []

    def contend(source: str) -> None:
        try:
            results.append(ingest(lighterd, source))
        except errors.LighterError as error:
            results.append(error)

    with pipe() as (source, write_end):
        threads = [threading.Thread(target=contend, args=(source,)) for _ in range(50)]
        for thread in threads:
            thread.start()
        await_that(lambda: len(results) == 49, 60, "all but one are refused")
        status = lines(lighterd.ctl("content", "active", check=True).stdout)
        assert [line.split()[0] for line in status] == ["REF", "r"]
        os.write(write_end, DATA[:1000])
        os.close(write_end)
        for thread in threads:
            thread.join(30)
    assert all(isinstance(error, errors.Unavailable) for error in results[:49]), results
    assert results[49]["digest"] == f"sha256:{hashlib.sha256(DATA[:1000]).hexdigest()}"


def test_f23_a_cancelled_ingest_is_gone_on_with_and_abort_removes_it(lighterd: Lighterd) -> None:
    argv = lighterd.ctl_argv("content", "ingest", "--expected-digest", DIGEST, *KEEP, "mine")
    ctl = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert ctl.stdin is not None
    ctl.stdin.write(DATA[:200_000])
    ctl.stdin.flush()

    def offset() -> int:
        return sum(row["offset"] for row in as_json(lighterd, "content", "active"))

    await_that(lambda: offset() == 200_000, 20, "the bytes have arrived")
    assert b"it is locked" in lighterd.ctl("content", "abort", "mine").stderr
    ctl.kill()
    ctl.wait()
    ctl.stdin.close()
    await_that(
        lambda: (
            lighterd.ctl(
                "content", "ingest", "--expected-digest", DIGEST, *KEEP, "mine", input=DATA
            ).returncode
            == 0
        ),
        20,
        "the ref is free and the ingest is gone on with",
    )
    assert digests(lighterd) == {DIGEST}


INGEST_POINTS = [
    *("ingest.begun", "ingest.opened", "ingest.written", "ingest.synced"),
    *("content.noted", "import.blob-renamed", "ingest.adopted"),
]


def test_f23_f26_the_manager_is_killed_at_each_step_of_an_ingest(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    lighterd = make_lighterd()
    file = tmp_path / "data"
    file.write_bytes(DATA)
    for point in INGEST_POINTS:
        lighterd.start(FAULT=f"{point}:abort")
        with file.open("rb") as source:
            path = f"/proc/{os.getpid()}/fd/{source.fileno()}"
            body = {"expected_digest": DIGEST, "labels": {"containerd.io/gc.root": "x"}}
            with pytest.raises(NoAnswer):
                ask(
                    lighterd,
                    "content.ingest",
                    **{"ref": "r", "source": path, "expected_bytes": 0, "lease": "", **body},
                )
            assert lighterd.process is not None
            lighterd.process.wait()
            lighterd.start()
            assert ingest(lighterd, path, **body)["digest"] == DIGEST
        assert digests(lighterd) == {DIGEST}, point
        assert lighterd.ctl("content", "get", DIGEST, check=True).stdout == DATA
        await_that(lambda: not list((lighterd.root / "content/writes").iterdir()), 10, point)
        lighterd.ctl("content", "rm", DIGEST, check=True)
        lighterd.stop()


GC_POINTS = ["gc.asked", "gc.marked", "gc.rows-deleted", "gc.files-removed", "snapshot.removed"]


def test_f33_f35_the_manager_is_killed_at_each_step_of_a_collection(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd().start()
    image = lighterd.import_busybox()
    for point in GC_POINTS:
        lighterd.ctl(
            "-n",
            "junk",
            "images",
            "import",
            str(images.busybox_archive(compressed=True)),
            check=True,
            timeout=60,
        )
        lighterd.stop()
        with contextlib.closing(sqlite3.connect(lighterd.root / "lighter.db")) as connection:
            connection.execute("DELETE FROM images WHERE namespace = 'junk'")
            connection.commit()
        lighterd.launch(FAULT=f"{point}:abort")  # the start's own collection
        assert lighterd.process is not None
        assert lighterd.process.wait(30) == -signal.SIGKILL, point
        lighterd.start()
        assert (
            lighterd.ctl("run", "--rm", "--name", "c", image, "echo", "runs", timeout=60).stdout
            == b"runs\n"
        ), point
        await_that(lambda: not _left_of_junk(lighterd), 20, f"{point}: the rest is collected")
        assert len(digests(lighterd)) == 3


@pytest.mark.parametrize("action", ["error", "bug"])
def test_what_cannot_be_tidied_up_at_a_start_does_not_end_collections(
    make_lighterd: Callable[..., Lighterd], action: str
) -> None:
    lighterd = make_lighterd().start()
    lighterd.restart(FAULT=f"gc.asked:{action}")
    lighterd.ctl("leases", "create", "--id", "mine", check=True)
    lighterd.ctl("content", "ingest", "--lease", "mine", "one", input=b"1", check=True)
    lighterd.ctl("leases", "rm", "mine", check=True)
    await_that(lambda: not digests(lighterd), 30, "it is collected")
    assert "pass fault point gc.asked" in lighterd.log.read_text()


def _left_of_junk(lighterd: Lighterd) -> list[str]:
    blobs = [path.name for path in (lighterd.root / "content/blobs/sha256").iterdir()]
    own = {digest.removeprefix("sha256:") for digest in digests(lighterd)}
    left = [name for name in blobs if name not in own]
    left += digests(lighterd, "-n", "junk")
    directories = list((lighterd.root / "snapshots/overlayfs").iterdir())
    return left + [path.name for path in directories[len(_snapshots(lighterd)) :]]


def test_sec_35_another_namespace_needs_the_bytes_or_the_label(lighterd: Lighterd) -> None:
    lighterd.ctl("-n", "a", "content", "ingest", *KEEP, "mine", input=DATA, check=True)
    words = ("-n", "b", "content", "ingest", "--expected-digest", DIGEST, *KEEP, "mine")
    refused = lighterd.ctl(*words, input=b"")
    lighterd.resumes = True  # it was begun, and nobody goes on with it
    assert refused.returncode == 1
    assert b"nothing was written" in refused.stderr
    assert lighterd.ctl("-n", "b", "content", "get", DIGEST).returncode == 1
    lighterd.ctl("namespaces", "label", "a", "containerd.io/namespace.shareable=true", check=True)
    lighterd.ctl(*words, input=b"", check=True)
    assert lighterd.ctl("-n", "b", "content", "get", DIGEST, check=True).stdout == DATA


def test_leases_keep_and_let_go(lighterd: Lighterd) -> None:
    lighterd.ctl("leases", "create", "--id", "mine", "team=web", check=True)
    lighterd.ctl("content", "ingest", "--lease", "mine", "one", input=b"1", check=True)
    lighterd.ctl("content", "ingest", "two", input=b"2", check=True)
    kept = "sha256:" + hashlib.sha256(b"1").hexdigest()
    lighterd.ctl("system", "prune", check=True)
    assert digests(lighterd) == {kept}
    header, row = lines(lighterd.ctl("leases", "ls", check=True).stdout)
    assert header.split() == ["ID", "CREATED", "AT", "LABELS"]
    assert row.split()[0] == "mine" and "containerd.io/gc.expire=" in row and "team=web" in row
    assert "lease mine" in lighterd.ctl("content", "why", kept, check=True).stdout.decode()
    lighterd.ctl("leases", "rm", "mine", check=True)
    await_that(lambda: digests(lighterd) == set(), 10, "what it held is collected by itself")
    made = lines(lighterd.ctl("leases", "create", "-x", "0", check=True).stdout)[0]
    assert as_json(lighterd, "leases", "ls")[0] | {"created_at": 0} == {
        "id": made,
        "labels": {},
        "created_at": 0,
        "expires_at": None,
    }
    lighterd.ctl("leases", "rm", made, check=True)


def test_layers_go_by_themselves_with_the_last_container_of_a_removed_image(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl("containers", "create", busybox, "c", check=True)
    (layer,) = [row["name"] for row in _snapshots(lighterd) if row["kind"] == "committed"]
    lighterd.ctl("images", "rm", busybox, check=True)
    why = lighterd.ctl("content", "why", layer, check=True).stdout.decode()
    assert "container c" in why and "parent" in why
    sizes = {row["kind"]: row["size_bytes"] for row in as_json(lighterd, "system", "df")}
    assert sizes["container"] > 1e6
    assert sizes["image"] == sizes["orphan"] == 0
    lighterd.ctl("containers", "rm", "c", check=True)
    await_that(lambda: not _snapshots(lighterd), 10, "the layers are collected")


def _snapshots(lighterd: Lighterd) -> list[dict[str, str]]:
    connection = sqlite3.connect(f"file:{lighterd.root}/lighter.db?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT key, kind FROM snapshots").fetchall()
    finally:
        connection.close()
    return [{"name": key, "kind": kind} for key, kind in rows]


def test_the_account_of_the_disk_is_dus(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl(
        "run",
        "--name",
        "c",
        busybox,
        "sh",
        "-c",
        "dd if=/dev/zero of=/file bs=1M count=3; seq 100000",
        check=True,
    )
    lighterd.ctl("content", "ingest", "stray", input=DATA, check=True)
    lighterd.ctl("content", "ingest", *KEEP, "kept", input=DATA[1:], check=True)
    (lighterd.root / "content/blobs/sha256" / ("0" * 64)).write_bytes(DATA)
    argv = lighterd.ctl_argv("content", "ingest", "arriving")
    ctl = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert ctl.stdin is not None
    ctl.stdin.write(DATA)
    ctl.stdin.flush()
    await_that(
        lambda: [row["offset"] for row in as_json(lighterd, "content", "active")] == [len(DATA)],
        20,
        "the bytes have arrived",
    )

    def agrees() -> bool:
        # The database's log grows as events are written, so both are taken until they meet.
        rows = as_json(lighterd, "system", "df")
        done = subprocess.run(
            ["du", "-s", "-B1", "-x", str(lighterd.root)], capture_output=True, check=True
        )
        return sum(row["size_bytes"] for row in rows) == int(done.stdout.split()[0])

    await_that(agrees, 20, "every byte is attributed")
    sizes = {row["kind"]: row for row in as_json(lighterd, "system", "df")}
    assert sizes["image"]["size_bytes"] > 2e6 and sizes["image"]["count"] == 4
    assert 3 << 20 <= sizes["container"]["size_bytes"] < 4 << 20
    assert sizes["kept"]["size_bytes"] >= len(DATA) and sizes["kept"]["count"] == 1
    assert sizes["orphan"]["count"] in (1, 2)  # the stray one, until a collection comes
    assert sizes["ingest"]["size_bytes"] >= len(DATA) and sizes["ingest"]["count"] == 1
    assert sizes["logs"]["size_bytes"] >= 500_000
    assert sizes["database"]["size_bytes"] > 0
    ctl.stdin.close()
    ctl.wait()
    (lighterd.root / "content/blobs/sha256" / ("0" * 64)).unlink()


def test_a_prune_tells_before_what_it_takes_and_takes_no_image(
    lighterd: Lighterd, busybox: str
) -> None:
    before = digests(lighterd)
    lighterd.ctl("-n", "other", "content", "ingest", "stray", input=DATA, check=True)
    told = as_json(lighterd, "system", "prune", "--dry-run")
    assert [(row["namespace"], row["content"], row["size_bytes"]) for row in told] == [
        ("other", [DIGEST], len(DATA))
    ]
    assert digests(lighterd, "-n", "other") == {DIGEST}
    assert as_json(lighterd, "system", "prune") == told
    assert digests(lighterd, "-n", "other") == set()
    assert digests(lighterd) == before
    assert as_json(lighterd, "system", "prune", "--dry-run") == []
    assert busybox in lighterd.ctl("images", "ls", "-q", check=True).stdout.decode()


def test_pruned_references_leave_what_is_unpacked(lighterd: Lighterd, busybox: str) -> None:
    (label,) = as_json(lighterd, "content", "prune", "references", "--dry")
    assert label["label"] == "containerd.io/gc.ref.content.l.0"
    assert len(digests(lighterd)) == 3
    lighterd.ctl("content", "prune", "references", check=True)
    assert len(digests(lighterd)) == 2
    done = lighterd.ctl("run", "--rm", "--name", "c", busybox, "echo", "runs", check=True)
    assert done.stdout == b"runs\n"


def test_a_namespace_goes_with_its_ingests_and_what_nobody_needs(lighterd: Lighterd) -> None:
    lighterd.ctl("-n", "x", "content", "ingest", "stray", input=b"1", check=True)
    size = ("--expected-size", str(len(DATA)))
    words = ("-n", "x", "content", "ingest", *size, "--expected-digest", DIGEST, "half")
    assert b"it has 10 bytes, 300000 are expected" in lighterd.ctl(*words, input=DATA[:10]).stderr
    assert [row["ref"] for row in as_json(lighterd, "-n", "x", "content", "active")] == ["half"]
    lighterd.ctl("namespaces", "rm", "x", check=True)
    assert not list((lighterd.root / "content/writes").iterdir())


def test_f69_collections_beside_imports_and_containers(lighterd: Lighterd) -> None:
    done = threading.Event()
    failures: list[BaseException] = []

    def collect() -> None:
        try:
            with lighterd.client() as client:
                while not done.is_set():
                    client.call("system", "prune", dry_run=False, timeout_s=60)
        except BaseException as error:
            failures.append(error)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for number in range(5):
            image = lighterd.import_busybox(compressed=number % 2 == 0)
            ran = lighterd.ctl("run", "--rm", "--name", f"c{number}", image, "echo", "runs")
            assert ran.stdout == b"runs\n", ran.stderr
            lighterd.ctl("images", "rm", image, check=True)
    finally:
        done.set()
        collector.join(60)
    assert not failures, failures


@pytest.fixture
def small(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    """An instance whose root is a file system of 64 MiB."""
    lighterd = make_lighterd()
    lighterd.root.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "lighter-test", str(lighterd.root)],
        check=True,
    )
    try:
        yield lighterd.start()
    finally:
        lighterd.stop()
        subprocess.run(["umount", str(lighterd.root)], check=True)


def test_f49_a_full_disk_refuses_the_ingest_and_nothing_else(
    small: Lighterd, tmp_path: Path
) -> None:
    image = small.import_busybox()
    small.ctl("containers", "create", image, "c", check=True)
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(128 << 20)
    with big.open("rb") as source:
        path = f"/proc/{os.getpid()}/fd/{source.fileno()}"
        with pytest.raises(errors.ResourceExhausted, match=r"No space left on device: .*/writes/"):
            ingest(small, path)
    # Nothing has to be removed by hand, and nothing restarted.
    free = os.statvfs(small.root)
    assert free.f_bavail * free.f_bsize > 4 << 20
    assert small.ctl("run", "--rm", "--name", "d", image, "echo", "runs").stdout == b"runs\n"
    small.ctl("content", "ingest", *KEEP, "mine", input=DATA, check=True)
    # Full to the last byte, what frees space still works.
    filler = small.root / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)
    small.restart()
    began = time.monotonic()
    small.ctl("containers", "rm", "c", check=True)
    small.ctl("images", "rm", image, check=True)
    small.ctl("content", "rm", DIGEST, check=True)
    small.ctl("system", "prune", check=True)
    assert time.monotonic() - began < 30
    filler.unlink()
    assert small.import_busybox() == images.REFERENCE
