"""Rows SEC-01 to SEC-19 of the unpacker: hostile layers and archives against real workers.

Each test plants a canary beside the target, the place that "..", an absolute name or a link of an
attack leads to, and compares all of it afterwards. The worker's working directory is the canary,
so that a path resolved against it is caught too.
"""

import ast
import contextlib
import gzip
import hashlib
import os
import resource
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

import lighter.shim
from lighter.proto.errors import DataLoss, InvalidArgument, LighterError, ResourceExhausted
from lighter.shim.worker.apply import Applier, Rules
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.metadata import LateTimes
from lighter.shim.worker.overlay import Overlay
from lighter.shim.worker.plain import Plain
from lighter.shim.worker.tarstream import TarReader
from tests.harness import await_that
from tests.security import images as img
from tests.security.images import CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK, archive, entry
from tests.unit.worker import harness

pytestmark = pytest.mark.root

MODES = ("overlay", "plain")
MIB = 1 << 20


class Case:
    """One target with the canary beside it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.fs = base / "fs"
        self.fs.mkdir()
        self.canary = base / "canary"
        (self.canary / "d").mkdir(parents=True)
        (self.canary / "f").write_bytes(b"canary")
        (self.canary / "d" / "inner").write_bytes(b"inner")
        (self.canary / "suid").write_bytes(b"#!")
        os.chmod(self.canary / "suid", 0o4755)
        os.mkfifo(self.canary / "fifo")
        os.setxattr(self.canary / "f", "user.canary", b"1")
        self.before = picture(self.canary)

    def unpack(self, layer: bytes, mode: str = "overlay", **job: Any) -> LighterError | None:
        """Apply; the typed error, if one came. Asserts that nothing but the target was touched."""
        try:
            harness.apply(layer, str(self.fs), str(self.canary), whiteouts=mode, **job)
            error = None
        except LighterError as err:
            error = err
        self.check()
        return error

    def check(self) -> None:
        assert picture(self.canary) == self.before
        assert sorted(os.listdir(self.base)) == ["canary", "fs"]
        assert stat.S_ISDIR(os.lstat(self.fs).st_mode)


def picture(root: Path) -> dict[str, Any]:
    """All that can be seen of a tree: status, attributes, contents."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = os.lstat(path)
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_nlink),
            *(status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_rdev),
            {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)},
            hashlib.sha256(content).hexdigest(),
        )
    return found


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    yield Case(tmp_path)
    # Trees too deep for shutil.rmtree, with which pytest deletes what old runs left.
    subprocess.run(["rm", "-rf", tmp_path / "fs"], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "lands"),
    [
        ("../x", "x"),
        ("../canary/f", "canary/f"),
        ("/x", "x"),
        ("a/../../x", "x"),
        ("a/../../../../../../canary/d/x", "canary/d/x"),
        ("./x", "x"),
        ("a//b/./x", "a/b/x"),
        ("p" * 255 + "/x", "p" * 255 + "/x"),
        ("p" * 256, None),
        ("x/" * 2000 + "x", "x/" * 2000 + "x"),
        ("x/" * 2100 + "x", None),
    ],
)
def test_sec_01_names_stay_inside(case: Case, mode: str, name: str, lands: str | None) -> None:
    error = case.unpack(archive(entry(name, FILE, b"content")), mode)
    if lands is None:
        assert isinstance(error, InvalidArgument)
        assert name[:50] in error.message
        return
    assert error is None
    if len(lands) < 3000:
        assert (case.fs / lands).read_bytes() == b"content"
    else:
        assert (case.fs / "x").is_dir()
        assert harness.run_job({"job": "remove", "dir": str(case.fs / "x")})["left_count"] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [b"", b".", b"./", b"/", b"a/.."])
def test_sec_01_a_nameless_file_is_refused(case: Case, mode: str, name: bytes) -> None:
    error = case.unpack(archive(entry(name, FILE, b"content")), mode)
    assert isinstance(error, InvalidArgument)
    assert os.listdir(case.fs) == []


def test_sec_01_a_nul_in_a_pax_name_is_refused(case: Case) -> None:
    layer = archive(img.pax({"path": b"x\0/../../canary/f"}), entry("short", FILE, b"content"))
    assert isinstance(case.unpack(layer), InvalidArgument)


def breakouts() -> Iterator[tuple[str, list[bytes]]]:
    """Ways to plant something that leads out × ways to use it afterwards."""
    plants = {
        "absolute symlink": [entry("l", SYMLINK, link="{canary}")],
        "relative symlink": [entry("l", SYMLINK, link="../canary")],
        "deep relative symlink": [entry("l", SYMLINK, link="../" * 20 + "{rel}")],
        "symlink to a symlink": [
            entry("k", SYMLINK, link="../canary"),
            entry("l", SYMLINK, link="k"),
        ],
        "symlink below a symlink": [
            entry("up", SYMLINK, link=".."),
            entry("l", SYMLINK, link="up/canary"),
        ],
        "directory turned into a symlink": [
            entry("l", DIR),
            entry("l/old", FILE, b"old"),
            entry("l", SYMLINK, link="{canary}"),
        ],
        "hard link to a symlink": [
            entry("k", SYMLINK, link="{canary}"),
            entry("l", HARDLINK, link="k"),
        ],
        "magic link": [entry("l", SYMLINK, link="/proc/self/cwd")],
    }
    uses = {
        "write below": [entry("l/f", FILE, b"evil", mode=0o6777, uid=7)],
        "new file below": [entry("l/new", FILE, b"evil")],
        "directory below": [entry("l/d", DIR, mode=0o777, uid=7)],
        "symlink below": [entry("l/f", SYMLINK, link="x")],
        "hard link below": [entry("mine", FILE, b"x"), entry("l/f", HARDLINK, link="mine")],
        "hard link from below": [entry("stolen", HARDLINK, link="l/f")],
        "fifo below": [entry("l/f", FIFO)],
        "device below": [entry("l/f", CHAR, major=img.octal(1, 8), minor=img.octal(3, 8))],
        "whiteout below": [entry("l/.wh.f")],
        "opaque below": [entry("l/.wh..wh..opq")],
        "as a directory": [entry("l", DIR, mode=0o777, uid=7), entry("l/f", FILE, b"evil")],
        "as a file": [entry("l", FILE, b"evil", mode=0o6777, uid=7)],
        "as a directory with slash": [entry("l/", DIR, mode=0o777), entry("l/f", FILE, b"evil")],
    }
    for (plant, planted), (use, used) in product(plants.items(), uses.items()):
        yield f"{plant}, {use}", planted + used


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "entries"), list(breakouts()), ids=lambda value: str(value)[:60])
def test_sec_02_links_do_not_redirect(
    case: Case, mode: str, shape: str, entries: list[bytes]
) -> None:
    layer = archive(*(aim(raw, case) for raw in entries))
    error = case.unpack(layer, mode)
    # Every link is followed inside, so each use succeeds there; only a hard link needs a target.
    if shape.endswith("hard link from below"):
        assert error is not None
        assert error.code == "not-found"
    else:
        assert error is None


@pytest.mark.parametrize("mode", MODES)
def test_sec_02_an_absolute_link_begins_at_the_root(case: Case, mode: str) -> None:
    link = entry("s/l", SYMLINK, link="/d")
    layer = archive(entry("s", DIR), link, entry("s/l/f", FILE, b"content"))
    assert case.unpack(layer, mode) is None
    assert (case.fs / "d/f").read_bytes() == b"content"


def aim(raw: bytes, case: Case) -> bytes:
    """Put the canary's path where an entry's link says so, and the checksum right again."""
    for mark, path in (
        (b"{canary}", os.fsencode(case.canary)),
        (b"{rel}", os.fsencode(str(case.canary)[1:])),
    ):
        if mark in raw[:512]:
            head = raw[157:257].replace(mark, path).rstrip(b"\0")
            kind = raw[156:157]
            name = raw[:100].rstrip(b"\0")
            return entry(name, kind, link=head)
    return raw


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "target", ["../canary/f", "{canary}/f", "l/f", "../../canary/f", "f", "./d/../f"]
)
def test_sec_03_hard_links_stay_inside(case: Case, mode: str, target: str) -> None:
    target = target.replace("{canary}", str(case.canary))
    layer = archive(
        entry("l", SYMLINK, link=str(case.canary)), entry("stolen", HARDLINK, link=target)
    )
    error = case.unpack(layer, mode)
    assert error is not None
    assert error.code in ("not-found", "invalid-argument")
    assert not (case.fs / "stolen").exists()


def test_sec_03_a_hard_link_to_a_link_links_the_link(case: Case) -> None:
    layer = archive(
        entry("l", SYMLINK, link=str(case.canary / "f")), entry("h", HARDLINK, link="l")
    )
    assert case.unpack(layer) is None
    assert os.readlink(case.fs / "h") == str(case.canary / "f")
    assert os.lstat(case.fs / "h").st_nlink == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [FILE, DIR, FIFO, CHAR, SYMLINK])
def test_sec_04_metadata_does_not_follow(case: Case, mode: str, kind: bytes) -> None:
    layer = archive(
        entry("l", SYMLINK, link=str(case.canary / "f"), xattrs={"user.x": b"1"}, uid=7),
        entry("l", kind, link="x", mode=0o6777, uid=7, xattrs={"user.evil": b"1"}),
    )
    assert case.unpack(layer, mode) is None
    assert os.lstat(case.fs / "l").st_uid == 7
    assert stat.S_ISLNK(os.lstat(case.fs / "l").st_mode) == (kind == SYMLINK)


@pytest.mark.parametrize("mode", MODES)
def test_sec_05_a_swapped_parent_is_not_used(case: Case, mode: str) -> None:
    round_ = (
        entry("d", DIR),
        entry("d/a", FILE, b"a"),
        entry("d", SYMLINK, link=str(case.canary)),
        entry("d/f", FILE, b"evil"),
    )
    assert case.unpack(archive(*round_ * 1000), mode) is None
    inside = case.fs / str(case.canary).lstrip("/")
    assert (inside / "f").read_bytes() == b"evil"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [SYMLINK, HARDLINK, FILE, FIFO, CHAR])
@pytest.mark.parametrize("name", ["./", ".", "/", "x/..", ""])
def test_sec_06_the_root_stays_a_directory(case: Case, mode: str, kind: bytes, name: str) -> None:
    error = case.unpack(archive(entry(name, kind, link=str(case.canary))), mode)
    assert isinstance(error, InvalidArgument)


def test_sec_06_the_root_takes_metadata(case: Case) -> None:
    assert case.unpack(archive(entry("./", DIR, mode=0o711, uid=5))) is None
    status = case.fs.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o711, 5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [".wh...", ".wh..", ".wh.", "a/.wh...", "a/b/.wh.."])
def test_sec_07_a_whiteout_names_a_file(case: Case, mode: str, name: str) -> None:
    assert isinstance(case.unpack(archive(entry(name)), mode), InvalidArgument)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["a/.wh.f", "a/.wh.d", "a/.wh..wh..opq", "a/d/.wh.inner"])
def test_sec_07_whiteouts_below_links_stay_inside(case: Case, mode: str, name: str) -> None:
    layer = archive(entry("a", SYMLINK, link=str(case.canary)), entry(name))
    assert case.unpack(layer, mode) is None


@pytest.mark.parametrize("mode", MODES)
def test_sec_08_markers_cost_the_same_each(small_disk: Path, mode: str) -> None:
    """Ten times the markers in ten times the files: what looks at each file for each marker takes
    a hundred times as long. CPU time, in memory, the best of some runs.
    """

    def seconds(count: int) -> float:
        files = b"".join(entry(f"d/{number}") for number in range(count))
        fd = harness.memfd(archive(entry("d", DIR), files, entry("d/.wh..wh..opq") * count))
        spent = []
        for attempt in range(3):
            target = small_disk / f"{count}-{attempt}"
            target.mkdir()
            os.lseek(fd, 0, os.SEEK_SET)
            with harness.Worker() as worker:
                # It takes a second or two of it, and minutes when each marker looks at each file.
                resource.prlimit(worker.pid, resource.RLIMIT_CPU, (20, 20))
                worker.send({"job": "apply", "target": str(target), "whiteouts": mode}, [fd])
                assert worker.result()["entries"] == 2 * count + 1
            assert len(os.listdir(target / "d")) == count
            spent.append(worker.cpu_s)
        os.close(fd)
        return min(spent)

    assert seconds(20_000) <= 30 * seconds(2_000)


def hostile_headers() -> dict[str, tuple[bytes, str]]:
    """What a header says, and the words by which its guard refuses it."""
    huge = img.base256((1 << 63) - 1, 12)
    return {
        "negative size": (img.header(b"x", size=img.base256(-1, 12)), "size -1 is out"),
        "huge size": (img.header(b"x", size=huge), "are allowed"),
        "beyond any number": (img.header(b"x", size=b"\x80" + b"\xff" * 11), "out of range"),
        "signed octal size": (img.header(b"x", size=b"-0000000001\0"), "not a number"),
        "underscored size": (img.header(b"x", size=b"0000000_001\0"), "not a number"),
        "PAX of 4 GiB": (
            img.header(b"x", b"x", size=img.base256(1 << 32, 12)),
            "extended header of",
        ),
        "negative PAX": (img.header(b"x", b"x", size=img.base256(-512, 12)), "extended header of"),
        "long name of 2 MiB": (img.special(b"L", b"n" * (2 * MIB)), "extended header of"),
        "PAX size negative": (img.pax({"size": b"-5"}) + entry("x"), "decimal"),
        "PAX length zero": (img.special(b"x", b"0 a=b\n"), "its length says"),
        "PAX length past the end": (img.special(b"x", b"999 a=b\n"), "its length says"),
        "PAX length of many digits": (img.special(b"x", b"9" * 100_000 + b" a=b\n"), "no length"),
        "PAX without an entry": (img.pax({"path": b"x"}), "after an extended header"),
        "PAX uid out of range": (img.pax({"uid": b"4294967295"}) + entry("x"), "owner"),
        "PAX time of many digits": (img.pax({"mtime": b"1" * 100_000}) + entry("x"), "decimal"),
        "wrong checksum": (img.header(b"x", checksum=b"0000000\0"), "checksum"),
        "unknown type": (img.header(b"x", b"Z"), "type"),
        "a single zero block": (bytes(512) + entry("x"), "single zero block"),
        "path of 5000 bytes": (img.pax({"path": b"p/" * 2500}) + entry("x"), "has more than 4096"),
        "path of 5000 dots": (
            img.pax({"path": b"./" * 2500 + b"x"}) + entry("x"),
            "more than 4096",
        ),
    }


@pytest.mark.parametrize("shape", hostile_headers())
def test_sec_09_hostile_headers_are_errors(case: Case, shape: str) -> None:
    content, words = hostile_headers()[shape]
    started = time.monotonic()
    error = case.unpack(content + img.END)
    assert isinstance(error, InvalidArgument | DataLoss | ResourceExhausted)
    assert words in error.message
    assert time.monotonic() - started < 20


def test_sec_09_every_truncation_is_an_error_or_an_end(tmp_path: Path) -> None:
    layer = archive(
        entry("d", DIR),
        entry("n" * 200, FILE, b"x" * 1500, xattrs={"user.a": b"1"}),
        entry("z", FILE, b"y" * 700),
    )
    for number, cut in enumerate(range(0, len(layer), 512)):
        for offset in (0, 1, 511):
            place = tmp_path / f"{number}-{offset}"
            place.mkdir()
            error = Case(place).unpack(layer[: cut + offset])
            assert error is None or isinstance(error, DataLoss)
            if offset and cut + offset < len(layer) - 1024:
                assert isinstance(error, DataLoss)


def test_sec_09_endless_extended_headers_take_bounded_memory(case: Case) -> None:
    body = b"".join(b"13 k%04d=abc\n" % (number % 10000) for number in range(80_000))
    one = img.special(b"x", body[: MIB // 13 * 13])
    peaks = []
    for count in (1, 64):
        fd = harness.memfd(one * count)
        with harness.Worker() as worker:
            worker.send(job(case, limits={}), [fd])
            with pytest.raises(DataLoss):
                worker.result()
        os.close(fd)
        peaks.append(worker.max_rss_bytes)
    assert peaks[1] - peaks[0] < 32 * MIB


def job(case: Case, **more: Any) -> dict[str, Any]:
    return {"job": "apply", "target": str(case.fs), "whiteouts": "overlay", **more}


def bomb(size: int) -> bytes:
    """A gzip of a layer with one file of `size` zeros, made without holding it."""
    head = img.header(b"bomb", size=img.base256(size, 12))
    zeros = gzip.compress(bytes(64 * MIB), 9)
    return gzip.compress(head) + zeros * (size // (64 * MIB)) + gzip.compress(img.END)


@pytest.mark.parametrize("size_gib", [1, 10])
def test_sec_10_a_bomb_stops_at_the_disk_reserve(small_disk: Path, size_gib: int) -> None:
    case = Case(small_disk)
    layer = bomb(size_gib << 30)
    peaks = []
    for content in (archive(entry("x")), layer):
        fd = harness.memfd(content)
        with harness.Worker() as worker:
            worker.send(job(case), [fd])
            if content is layer:
                with pytest.raises(ResourceExhausted, match="bomb"):
                    worker.result()
            else:
                worker.result()
        os.close(fd)
        peaks.append(worker.max_rss_bytes)
    assert peaks[1] - peaks[0] < 64 * MIB
    case.check()


def test_sec_10_layers_side_by_side_keep_the_reserve_together(small_disk: Path) -> None:
    """Each alone has room enough: 40 of 64 MiB. Both have begun before either goes on."""
    content = archive(*(entry(str(number), FILE, bytes(MIB)) for number in range(40)))
    both = threading.Barrier(2)
    workers, feeders, failed = [], [], 0
    for name in "ab":
        target = small_disk / name
        target.mkdir()
        reads, writes = os.pipe()
        workers.append(harness.Worker())
        job = {"job": "apply", "target": str(target), "whiteouts": "overlay"}
        workers[-1].send(job, [reads])
        os.close(reads)

        def feed(writes: int = writes, first: Path = target / "0") -> None:
            with open(writes, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
                pipe.write(content[: 2 * MIB])
                await_that(first.exists, 30, "the worker has begun")
                both.wait(30)
                pipe.write(content[2 * MIB :])

        feeders.append(threading.Thread(target=feed))
        feeders[-1].start()
    for worker in workers:
        with worker:
            try:
                worker.result()
            except ResourceExhausted as err:
                failed += 1
                assert "kept free" in err.message
    for feeder in feeders:
        feeder.join()
    status = os.statvfs(small_disk)
    assert failed
    assert status.f_bavail * status.f_frsize > 0


def test_sec_11_nothing_of_the_image_is_executed(case: Case) -> None:
    """Programs and libraries by the names that others load, in every way of packing."""
    hook = b"#!/bin/sh\ntouch " + os.fsencode(case.canary) + b"/owned\n"
    names = ("bin/sh", "usr/bin/unpigz", "usr/bin/xz", "usr/bin/zstd", "usr/bin/tar")
    libraries = ("lib/x86_64-linux-gnu/libnss_files.so.2", "lib64/libnss_files.so.2")
    layer = archive(
        *(entry(name, FILE, hook, mode=0o755) for name in (*names, *libraries)),
        entry("etc/nsswitch.conf", FILE, b"passwd: files evil\n"),
        entry("etc/ld.so.preload", FILE, b"/lib64/libnss_files.so.2\n"),
    )
    for packed in (layer, gzip.compress(layer), zstandard.compress(layer)):
        with harness.Worker(str(case.canary)) as worker:
            command = ["strace", "-f", "-qq", "-e", "trace=execve,execveat,openat,open", "-p"]
            tracer = subprocess.Popen(
                [*command, str(worker.pid)], stderr=subprocess.PIPE, text=True
            )
            await_that(lambda pid=worker.pid: traced(pid), 20, "strace is attached")
            fd = harness.memfd(packed)
            worker.send(job(case), [fd])
            worker.result()
            os.close(fd)
        complaint = tracer.communicate(timeout=20)[1]
        assert "execve" not in complaint
        inside = complaint.partition('"/target"')[2]
        assert inside, "the worker locked itself in"
        assert "nsswitch.conf" not in inside.replace('"nsswitch.conf", O_WRONLY', "")
        assert "/lib" not in inside
        case.check()


def test_sec_11_a_library_is_the_hosts_although_the_container_brings_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that enters a container has the container's files where it looks for modules."""
    place = Path(zstandard.__file__).parent
    inside = case.fs / str(place)[1:]
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("open('/owned', 'w').close()\nraise ImportError('owned')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "zstandard"]:
        monkeypatch.delitem(sys.modules, name)
    mounts = [["bind", str(case.fs), ["rbind", "rw"]]]
    fd = harness.memfd(zstandard.compress(archive(entry("f", FILE, b"content"))))
    try:
        harness.run_job({"job": "extract", "path": b"/", "mounts": mounts}, [fd], str(case.canary))
    finally:
        assert not (case.fs / "owned").exists()
        os.close(fd)
    assert (case.fs / "f").read_bytes() == b"content"
    case.check()


def traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def test_sec_10_many_files_stop_at_the_limit(case: Case) -> None:
    layer = archive(*(entry(str(number), FILE, bytes(8192)) for number in range(200)))
    error = case.unpack(layer, limits={"max_bytes": MIB})
    assert isinstance(error, ResourceExhausted)
    assert sum(path.stat().st_size for path in case.fs.iterdir()) <= MIB


@pytest.mark.parametrize(
    ("count", "one"),
    [
        (20, {"kind": SYMLINK, "link": "t" * 60}),
        (20, {"kind": FILE, "xattrs": {"user.a": bytes(2000)}}),
        (20, {"kind": FIFO, "xattrs": {"trusted.a": bytes(2000)}}),
        (20, {"kind": SYMLINK, "link": "t", "xattrs": {"trusted.a": bytes(2000)}}),
        (10, {"kind": DIR, "xattrs": {"user.a": bytes(2000)}}),
    ],
)
def test_sec_10_links_and_attributes_stop_at_the_limit(
    case: Case, count: int, one: dict[str, Any]
) -> None:
    layer = archive(*(entry(str(number), **one) for number in range(count)))
    error = case.unpack(layer, limits={"max_bytes": 15 * 4096})
    assert isinstance(error, ResourceExhausted)
    assert "61440 are allowed" in error.message
    assert 7 <= len(os.listdir(case.fs)) <= 16


def test_sec_10_many_names_leave_the_disk_some_inodes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1000", "small", disk], check=True)
    try:
        case = Case(disk)
        error = case.unpack(archive(*(entry(str(number)) for number in range(1500))))
        assert isinstance(error, ResourceExhausted)
        assert "inodes left" in error.message
        assert os.statvfs(disk).f_favail > 30
        assert len(os.listdir(case.fs)) > 900
    finally:
        subprocess.run(["umount", disk], check=True)


def test_sec_10_names_without_content_are_a_reason_to_look_at_the_disk(small_disk: Path) -> None:
    place = os.open(small_disk, os.O_RDONLY | os.O_DIRECTORY)
    try:
        budget = Budget(place, None)
        (small_disk / "others").write_bytes(bytes(62 * MIB))
        with pytest.raises(ResourceExhausted, match="kept free"):
            for _ in range(5000):
                budget.name()
        assert budget.used_bytes == 0
    finally:
        os.close(place)


def test_sec_10_a_thousand_members_are_one_stream(case: Case) -> None:
    plain = archive(entry("x", FILE, os.urandom(100_000)))
    size = len(plain) // 1000 + 1
    members = b"".join(
        gzip.compress(plain[start : start + size]) for start in range(0, len(plain), size)
    )
    assert case.unpack(members, diff_id=img.diff_id(plain)) is None


def test_sec_10_entries_are_counted(case: Case) -> None:
    layer = archive(*(entry(str(number)) for number in range(11)))
    assert isinstance(case.unpack(layer, limits={"max_entries": 10}), ResourceExhausted)


def zstd_bomb(size: int) -> bytes:
    """As `bomb`, in frames of zstd: of each kilobyte comes a mebibyte, and more."""
    head = img.header(b"bomb", size=img.base256(size, 12))
    pack = zstandard.ZstdCompressor(3).compress
    return pack(head) + pack(bytes(64 * MIB)) * (size // (64 * MIB)) + pack(img.END)


def test_sec_10_a_zstd_bomb_stops_at_the_disk_reserve(small_disk: Path) -> None:
    case = Case(small_disk)
    peaks = []
    for content in (zstandard.compress(archive(entry("x"))), zstd_bomb(10 << 30)):
        fd = harness.memfd(content)
        with harness.Worker() as worker:
            worker.send(job(case), [fd])
            if peaks:
                with pytest.raises(ResourceExhausted, match="bomb"):
                    worker.result()
            else:
                worker.result()
        os.close(fd)
        peaks.append(worker.max_rss_bytes)
    assert peaks[1] - peaks[0] < 64 * MIB
    case.check()


@pytest.mark.parametrize("log", [28, 31])
def test_sec_10_a_zstd_window_is_bounded(case: Case, log: int) -> None:
    options = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=options).compressobj()
    stored = packed.compress(archive(entry("x"))) + packed.flush()
    error = case.unpack(stored)
    assert isinstance(error, ResourceExhausted)
    assert "window" in error.message


@pytest.mark.parametrize(("major", "minor"), [(1 << 12, 0), (8, 1 << 20), ((1 << 32) + 8, 0)])
@pytest.mark.parametrize("kind", [CHAR, img.BLOCK_DEV])
def test_sec_12_device_numbers_are_not_cut(case: Case, kind: bytes, major: int, minor: int) -> None:
    raw = {"major": img.base256(major, 8), "minor": img.base256(minor, 8)}
    error = case.unpack(archive(entry("dev/evil", kind, **raw)))
    assert isinstance(error, InvalidArgument)
    assert "dev/evil" in error.message
    assert os.listdir(case.fs / "dev") == []


def test_sec_12_devices_need_the_policy(case: Case) -> None:
    layer = archive(entry("null", CHAR, major=img.octal(1, 8), minor=img.octal(3, 8)))
    error = case.unpack(layer, limits={"devices": False})
    assert error is not None
    assert error.code == "permission-denied"
    assert case.unpack(layer) is None
    assert os.lstat(case.fs / "null").st_rdev == os.makedev(1, 3)


def test_sec_13_tarfile_extracts_nothing() -> None:
    package = Path(lighter.shim.__file__).resolve().parent.parent
    forbidden = {"extract", "extractall", "unpack_archive"}
    checked = 0
    for folder in ("proto", "shim", "daemon", "ctl"):
        for file in (package / folder).rglob("*.py"):
            checked += 1
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    assert name not in forbidden, f"{file}:{node.lineno} calls {name}"
                if isinstance(node, ast.Import | ast.ImportFrom) and folder == "shim":
                    names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                    assert "tarfile" not in names, f"{file}:{node.lineno} imports tarfile"
    assert checked > 20


def bypass(case: Case) -> list[bytes]:
    """CVE-2025-4517: a chain of links whose expansion passes PATH_MAX, then names below it."""
    part, steps, entries, path = "d" * 247, "abcdefghijklmnop", [], ""
    for step in steps:
        entries.append(entry(path + part, DIR))
        entries.append(entry(path + step, SYMLINK, link=part))
        path += part + "/"
    link = "/".join(steps) + "/" + "l" * 254
    return [
        *entries,
        entry(link, SYMLINK, link="../" * len(steps)),
        entry("escape", SYMLINK, link=link + "/../../../../" + str(case.canary)[1:]),
        entry("flaglink", HARDLINK, link="escape/f"),
        entry("flaglink", FILE, b"evil"),
        entry("escape/f", FILE, b"evil", mode=0o6777, uid=7),
        entry("escape", DIR, mode=0o777, uid=7),
    ]


@pytest.mark.parametrize("mode", MODES)
def test_sec_13_published_filter_bypasses(case: Case, mode: str) -> None:
    entries = bypass(case)
    for count in range(len(entries)):
        case.unpack(archive(*entries[: count + 1]), mode)


def unpack_unlocked(case: Case, layer: bytes, mode: str) -> None:
    """What a worker does once it is locked in, in a child that is not."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.umask(0)
            os.chdir(case.canary)
            target = os.open(case.fs, os.O_RDONLY | os.O_DIRECTORY)
            budget, times = Budget(target, None), LateTimes()
            rules: Rules = (
                Plain(target, budget)
                if mode == "plain"
                else Overlay(target, [], times, budget, lambda: None)
            )
            tar = TarReader(ByteStream(iter([layer])))
            applier = Applier(tar, rules, times, budget, devices=True)
            for one in tar:
                applier.apply(one)
            applier.finish()
            code = 0
        except LighterError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("mode", MODES)
def test_sec_02_and_13_no_name_leads_out_even_where_no_lock_holds(
    tmp_path: Path, mode: str
) -> None:
    """The names alone: each attack meets the look-up, and not the empty host behind it."""
    over_a_file = [
        [entry("l", SYMLINK, link="{canary}/f"), entry("l", kind, link="x", mode=0o6777, uid=7)]
        for kind in (FILE, DIR, FIFO, CHAR, SYMLINK)
    ]
    try:
        for number, entries in enumerate([*(use for _, use in breakouts()), *over_a_file, []]):
            (tmp_path / str(number)).mkdir()
            case = Case(tmp_path / str(number))
            attack = [aim(raw, case) for raw in entries] or bypass(case)
            unpack_unlocked(case, archive(*attack), mode)
            case.check()
    finally:
        subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def test_sec_14_the_place_of_a_volume_is_made_in_the_container(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where a link of the container's says, as the container sees it."""
    volume = tmp_path_factory.mktemp("volume")
    inside = case.fs / str(case.canary)[1:]
    (inside / "d").mkdir(parents=True)
    (inside / "l").symlink_to(case.canary / "d")
    job = {
        "job": "extract",
        "path": b"%s/l/new" % os.fsencode(case.canary),
        "mounts": [["bind", str(case.fs), ["rbind", "rw"]]],
        "binds": [[str(volume), f"{case.canary}/l/new", False]],
    }
    fd = harness.memfd(archive(entry("f", FILE, b"content")))
    harness.run_job(job, [fd], str(case.canary))
    os.close(fd)
    case.check()
    assert (volume / "f").read_bytes() == b"content"
    assert os.listdir(inside / "d/new") == []


def test_sec_46_what_fills_a_volume_is_the_images(case: Case) -> None:
    """By a name that the host has too, and by a link that leads to it."""
    inside = case.fs / str(case.canary)[1:]
    inside.mkdir(parents=True)
    (inside / "f").write_bytes(b"the image's")
    (case.fs / "l").symlink_to(case.canary)
    mounts = [["bind", str(case.fs), ["rbind", "rw"]]]
    for path in (os.fsencode(case.canary), b"/l"):
        fd = os.memfd_create("tar")
        job = {"job": "pack", "path": path, "name": b".", "follow": True, "mounts": mounts}
        harness.run_job(job, [fd], str(case.canary))
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(fd, "rb") as file, tarfile.open(fileobj=file) as packed:
            assert packed.getnames() == [".", "f"]
            content = packed.extractfile("f")
            assert content is not None
            assert content.read() == b"the image's"
    case.check()


@pytest.mark.parametrize("kind", [FILE, DIR])
def test_sec_17_overlay_attributes_are_dropped(case: Case, kind: bytes) -> None:
    private = {
        "trusted.overlay.redirect": b"/x",
        "trusted.overlay.metacopy": b"",
        "trusted.overlay.opaque": b"y",
        "user.overlay.opaque": b"y",
    }
    # vfs_ns_cap_data, revision 2: cap_net_bind_service, permitted.
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    kept = {"security.capability": capability, "user.mine": b"1"} if kind == FILE else {}
    assert case.unpack(archive(entry("x", kind, xattrs={**private, **kept}))) is None
    found = {name: os.getxattr(case.fs / "x", name) for name in os.listxattr(case.fs / "x")}
    assert found == kept


@pytest.mark.parametrize("compressed", [False, True])
def test_sec_19_bytes_after_the_end_are_read_and_hashed(case: Case, compressed: bool) -> None:
    layer = archive(entry("x", FILE, b"content")) + os.urandom(3 * MIB)
    stored = gzip.compress(layer, 1) if compressed else layer
    assert case.unpack(stored, diff_id=img.diff_id(layer)) is None
    assert isinstance(case.unpack(stored, diff_id=img.diff_id(layer[:-1])), DataLoss)


def test_sec_19_a_gigabyte_after_the_end(case: Case) -> None:
    started = time.monotonic()
    assert (
        case.unpack(gzip.compress(archive(entry("x"))) + gzip.compress(bytes(MIB)) * 1024) is None
    )
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("damage", "good"),
    [
        (lambda blob: blob[:-1], False),
        (lambda blob: blob[: len(blob) // 2], False),
        (lambda blob: blob + b"garbage", False),
        (lambda blob: blob + bytes(1000), True),
        (lambda blob: blob + bytes(1000) + b"garbage", False),
        (lambda blob: blob[:-6] + b"\xff" + blob[-5:], False),
        (lambda blob: blob[:10], False),
    ],
)
def test_sec_19_damaged_gzip(case: Case, damage: Any, good: bool) -> None:
    blob = gzip.compress(archive(entry("x", FILE, os.urandom(5000))))
    error = case.unpack(damage(blob))
    assert error is None if good else isinstance(error, DataLoss)


@pytest.mark.parametrize(
    ("damage", "good"),
    [
        (lambda blob: blob, True),
        (lambda blob: blob[:-1], False),
        (lambda blob: blob[: len(blob) // 2], False),
        (lambda blob: blob + b"garbage", False),
        (lambda blob: blob + bytes(1000), False),
        (lambda blob: blob[:10], False),
    ],
)
def test_sec_19_damaged_zstd(case: Case, damage: Any, good: bool) -> None:
    blob = zstandard.ZstdCompressor(write_checksum=True).compress(
        archive(entry("x", FILE, os.urandom(5000)))
    )
    error = case.unpack(damage(blob))
    assert error is None if good else isinstance(error, DataLoss)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+zstd+encrypted",
        "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+unknown",
        "application/octet-stream",
        "application/vnd.in-toto+json",
    ],
)
def test_sec_34_other_types_fail_closed(case: Case, media_type: str) -> None:
    error = case.unpack(gzip.compress(archive(entry("x"))), media_type=media_type)
    assert error is not None
    assert error.code == "unimplemented"
    assert media_type in error.message
    assert os.listdir(case.fs) == []


def import_archive(content: bytes, ingest: Path) -> dict[str, Any]:
    ingest.mkdir()
    fd, dir_fd = harness.memfd(content), os.open(ingest, os.O_RDONLY)
    try:
        return harness.run_job({"job": "import"}, [fd, dir_fd])
    finally:
        os.close(fd)
        os.close(dir_fd)


def test_sec_15_a_good_archive_is_taken(tmp_path: Path) -> None:
    files = img.oci_files(archive(entry("x", FILE, b"content")))
    for number, content in enumerate((img.pack(files), gzip.compress(img.pack(files)))):
        ingest = tmp_path / str(number)
        result = import_archive(content, ingest)
        assert result["index"]
        assert result["blobs"] == 3
        listed = msgpack.unpackb((ingest / "blobs.msgpack").read_bytes())
        for blob in listed["blobs"]:
            stored = (ingest / blob["file"]).read_bytes()
            assert img.diff_id(stored) == blob["digest"]
            assert len(stored) == blob["size_bytes"]
            assert stored == files["blobs/sha256/" + blob["digest"][7:]]
        assert (ingest / "index.json").read_bytes() == files["index.json"]


def hostile_archives() -> dict[str, tuple[bytes, str]]:
    """What an archive holds, and the words by which its guard refuses it."""
    files = img.oci_files(archive(entry("x")))
    wrong = {**files, "blobs/sha256/" + "0" * 64: b"other"}
    out, regular = "its name leads out", "only regular files"
    return {
        "index of 2 GB": (
            img.header(b"index.json", size=img.base256(2 << 30, 12)),
            "has 2147483648 bytes, at most",
        ),
        "index a link out": (entry("index.json", SYMLINK, link="/etc/passwd"), out),
        "index a link": (
            archive(
                entry("oci-layout", FILE, b"{}"), entry("index.json", SYMLINK, link="oci-layout")
            ),
            "it is a link to",
        ),
        "index a hard link": (entry("index.json", HARDLINK, link="oci-layout"), regular),
        "blobs a link": (entry("blobs", SYMLINK, link="/etc"), out),
        "blob with another name": (img.pack(wrong), "its content is sha256:"),
        "saved config with another name": (
            img.pack({**files, "0" * 64 + ".json": b"{}"}),
            "its content is sha256:",
        ),
        "name not a digest": (img.pack({**files, "blobs/sha256/../../x": b""}), out),
        "name of another length": (img.pack({**files, "blobs/sha256/abc": b""}), "not a digest"),
        "unknown algorithm": (img.pack({**files, "blobs/md5/" + "0" * 32: b""}), "not a digest"),
        "absolute name": (img.pack(files, entry("/x", FILE, b"x")), out),
        "twice": (img.pack(files, entry("index.json", FILE, b"{}")), "holds it twice"),
        "device": (img.pack(files, entry("null", CHAR)), regular),
        "layer link out": (
            img.pack(files, entry("a/layer.tar", SYMLINK, link="../../etc/passwd")),
            out,
        ),
        "layer link unseen": (
            img.pack(files, entry("a/layer.tar", SYMLINK, link="../b/layer.tar")),
            "it is a link to",
        ),
        "too many entries": (
            b"".join(entry(f"d/{number}", DIR) for number in range(100_001)),
            "more than 100000 entries",
        ),
        "no document": (img.pack({"oci-layout": b"{}"}), "neither index.json nor"),
    }


@pytest.mark.parametrize("shape", hostile_archives())
def test_sec_15_hostile_archives(tmp_path: Path, shape: str) -> None:
    content, words = hostile_archives()[shape]
    started = time.monotonic()
    with pytest.raises((InvalidArgument, DataLoss, ResourceExhausted), match=words):
        import_archive(content + img.END, tmp_path / "ingest")
    assert time.monotonic() - started < 30
    assert os.listdir(tmp_path) == ["ingest"]


def test_sec_15_an_old_docker_link_is_an_alias(tmp_path: Path) -> None:
    layer = archive(entry("x"))
    content = archive(
        entry("a/layer.tar", FILE, layer),
        entry("b/layer.tar", SYMLINK, link="../a/layer.tar"),
        entry("manifest.json", FILE, b"[]"),
    )
    result = import_archive(content, tmp_path / "ingest")
    assert result["manifest"]
    listed = msgpack.unpackb((tmp_path / "ingest" / "blobs.msgpack").read_bytes())
    assert listed["names"] == dict.fromkeys(("a/layer.tar", "b/layer.tar"), img.diff_id(layer))
    assert not (tmp_path / "ingest" / "b").exists()
