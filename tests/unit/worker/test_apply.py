"""Layers against real file systems: what is on disk afterwards, compared with GNU tar's work."""

import gzip
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighter.proto.errors import DataLoss, InvalidArgument, LighterError, NotFound
from lighter.shim.worker.apply import clean
from tests.security.images import (
    CHAR,
    DIR,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    archive,
    diff_id,
    entry,
    octal,
)
from tests.unit.worker.harness import apply

pytestmark = pytest.mark.root

NAMES = st.sampled_from(["a", "b", "c", "dé", "e" * 90, "f" * 200, "name with space", ".hidden"])
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)


def tree(root: Path) -> dict[str, Any]:
    """All of a tree that an archive can say; inodes only as groups of names."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = os.lstat(path)
        name = str(path.relative_to(root))
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        same_as = "" if stat.S_ISDIR(status.st_mode) else first.setdefault(status.st_ino, name)
        found[name] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_rdev, same_as, content),
            status.st_mtime_ns if name != "." else 0,
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


@st.composite
def layers(draw: st.DrawFn) -> bytes:
    """A layer as Python's tarfile writes it: parents first, any format, some hard links."""
    out = io.BytesIO()
    form = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    directories = [""]
    taken: set[str] = set()
    files: list[str] = []
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for _ in range(draw(st.integers(0, 12))):
            path = draw(st.sampled_from(directories)) + draw(NAMES)
            if path in taken:
                continue
            taken.add(path)
            info = tarfile.TarInfo(path)
            info.type = draw(KINDS)
            info.mode = draw(st.integers(0, 0o7777))
            info.uid, info.gid = draw(st.integers(0, 1 << 22)), draw(st.integers(0, 100_000))
            info.mtime = draw(st.integers(0, 1 << 32))
            content = b""
            if files and draw(st.booleans()):
                info.type, info.linkname = tarfile.LNKTYPE, draw(st.sampled_from(files))
            elif info.type == tarfile.REGTYPE:
                content = draw(st.binary(max_size=1500))
                files.append(path)
            elif info.type == tarfile.DIRTYPE:
                directories.append(path + "/")
            elif info.type == tarfile.SYMTYPE:
                info.linkname = draw(st.sampled_from(["a", "../x", "/abs", "l" * 150]))
            elif info.type == tarfile.CHRTYPE:
                info.devmajor, info.devminor = 1, draw(st.integers(1, 300))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("mode", ["overlay", "plain"])
@given(layer=layers(), compressed=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_layer_is_what_gnu_tar_extracts(mode: str, layer: bytes, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as base:
        ours, theirs = Path(base, "ours"), Path(base, "theirs")
        ours.mkdir()
        theirs.mkdir()
        stored = gzip.compress(layer, 1) if compressed else layer
        apply(stored, str(ours), whiteouts=mode, diff_id=diff_id(layer))
        subprocess.run(
            [
                "tar",
                "-xf",
                "-",
                "-C",
                str(theirs),
                "--numeric-owner",
                "-p",
                "--delay-directory-restore",
            ],
            input=layer,
            check=True,
        )
        found, expected = tree(ours), tree(theirs)
        assert found == expected


def gnu_archive(root: Path, *options: str) -> bytes:
    made = subprocess.run(
        ["tar", "-cf", "-", "-C", str(root), *options, "."], capture_output=True, check=True
    )
    return made.stdout


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_formats_that_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "dir" / "sub").mkdir(parents=True)
    target.mkdir()
    (source / "dir" / "file").write_bytes(os.urandom(3000))
    (source / "dir" / "empty").touch()
    os.symlink("file", source / "dir" / "link")
    os.link(source / "dir" / "file", source / "dir" / "sub" / "hard")
    if form not in ("ustar", "v7"):
        (source / ("n" * 140)).write_text("long")
        os.symlink("t" * 140, source / "longlink")
    if form in ("pax", "posix"):
        os.setxattr(source / "dir" / "file", "user.name", b"value\0\n=x")
    for path in source.rglob("*"):
        os.utime(path, ns=(0, 1_600_000_000_000_000_000), follow_symlinks=False)
    os.utime(source, (0, 1_600_000_000))
    layer = gnu_archive(source, f"--format={form}", *(["--xattrs"] if form == "pax" else []))
    apply(layer, str(target), diff_id=diff_id(layer))
    if form == "posix":
        os.removexattr(source / "dir" / "file", "user.name")
    assert tree(target) == tree(source)


def test_a_layer_goes_to_what_is_mounted_for_the_worker_alone(tmp_path: Path) -> None:
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for path in (lower / "d", upper, work):
        path.mkdir(parents=True)
    (lower / "gone").touch()
    (lower / "d/old").touch()
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]
    layer = archive(entry(".wh.gone"), entry("d/.wh..wh..opq"), entry("d/new", FILE, b"n"))
    mounts = [["overlay", "overlay", options]]
    done = apply(layer, "", whiteouts="plain", mounts=mounts, sync=True)
    assert done["diff_id"] == diff_id(layer)
    assert (upper / "d/new").read_bytes() == b"n"
    for removed in (upper / "gone", upper / "d/old"):
        assert stat.S_ISCHR(removed.lstat().st_mode) and removed.lstat().st_rdev == 0
    assert (lower / "gone").exists()
    assert str(upper) not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(LighterError, match="mount the snapshot"):
        apply(layer, "", whiteouts="plain", mounts=[["overlay", "overlay", ["lowerdir=/nope"]]])


def test_order_and_metadata(tmp_path: Path) -> None:
    """setuid survives the owner, a directory's time survives its contents."""
    layer = archive(
        entry("d", DIR, mode=0o2755, uid=3, mtime=octal(5, 12)),
        entry("d/suid", FILE, b"x", mode=0o4755, uid=7),
        entry("d/later", FILE),
    )
    apply(layer, str(tmp_path))
    status = os.stat(tmp_path / "d" / "suid")
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o4755, 7)
    status = os.stat(tmp_path / "d")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o2755, 3, 5)


def test_an_entry_may_come_again_as_another_kind(tmp_path: Path) -> None:
    kinds = [FILE, DIR, SYMLINK, FIFO, FILE, SYMLINK, DIR, CHAR, DIR, FILE]
    layer = archive(*(entry("x", kind, link="y", major=octal(1, 8)) for kind in kinds))
    apply(layer, str(tmp_path))
    assert (tmp_path / "x").is_file()


def test_errors_name_the_entry(tmp_path: Path) -> None:
    layer = archive(entry("file"), entry("file/below"))
    with pytest.raises(InvalidArgument, match=r"file/below.*not a directory"):
        apply(layer, str(tmp_path))
    with pytest.raises(NotFound, match="nowhere"):
        apply(archive(entry("h", HARDLINK, link="nowhere")), str(tmp_path))


def test_sec_16_the_diff_id_is_verified(tmp_path: Path) -> None:
    layer = archive(entry("x"))
    with pytest.raises(DataLoss, match="diff id"):
        apply(layer, str(tmp_path), diff_id="sha256:" + "0" * 64)
    result = apply(gzip.compress(layer), str(tmp_path), digest=None, diff_id=diff_id(layer))
    assert result["diff_id"] == diff_id(layer)
    stored = gzip.compress(layer)
    assert apply(stored, str(tmp_path), digest=diff_id(stored))["digest"] == diff_id(stored)
    with pytest.raises(DataLoss, match="digest"):
        apply(stored, str(tmp_path), digest=diff_id(layer))


@pytest.mark.parametrize("magic", [b"\xfd7zXZ\x00", b"BZh9"])
def test_other_compressions_are_refused(tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(LighterError) as caught:
        apply(magic + bytes(600), str(tmp_path))
    assert caught.value.code == "unimplemented"


OCI, DOCKER = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
PACK = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize(
    "media_type",
    [
        "",
        *(OCI + how for how in ("+gzip", "+zstd")),
        OCI.replace("v1", "nondistributable.v1") + "+gzip",
        *(DOCKER + how for how in ("", ".gzip", ".zstd")),
        DOCKER.replace("rootfs", "rootfs.foreign"),
    ],
)
def test_the_first_bytes_tell_the_compression(tmp_path: Path, media_type: str, packed: str) -> None:
    """Whichever of the compressed types it is, as containerd does; the worker may not import."""
    layer = archive(entry("x", FILE, b"content" * 1000))
    apply(PACK[packed](layer), str(tmp_path), media_type=media_type, diff_id=diff_id(layer))
    assert (tmp_path / "x").read_bytes() == b"content" * 1000


def test_ocis_plain_tar_is_not_decompressed(tmp_path: Path) -> None:
    layer = archive(entry("x"))
    apply(layer, str(tmp_path), media_type=OCI, diff_id=diff_id(layer))
    for packed in ("gzip", "zstd"):
        with pytest.raises(LighterError, match="is this a tar archive"):
            apply(PACK[packed](layer * 50), str(tmp_path), media_type=OCI)


class Stack:
    """Layers applied one upon another, and overlayfs' own view of them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.lowers: list[str] = []

    def add(self, *entries: bytes) -> Path:
        layer = self.base / f"layer{len(self.lowers)}"
        layer.mkdir()
        apply(archive(*entries), str(layer), lowers=self.lowers)
        self.lowers.insert(0, str(layer))
        return layer

    def view(self) -> dict[str, Any]:
        """The merged tree as the kernel shows it."""
        point, empty = self.base / "merged", self.base / "empty"
        point.mkdir()
        empty.mkdir()
        options = "lowerdir=" + ":".join([*self.lowers, str(empty)])
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", point], check=True)
        try:
            return tree(point)
        finally:
            subprocess.run(["umount", point], check=True)
            point.rmdir()
            empty.rmdir()


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def test_implied_directories_look_as_below(stack: Stack) -> None:
    stack.add(
        entry("./", DIR, mode=0o751, uid=9),
        entry("tmp", DIR, mode=0o1777, uid=1, mtime=octal(77, 12), xattrs={"user.a": b"1"}),
        entry("tmp/deep", DIR, mode=0o700, uid=2),
        entry("file"),
    )
    upper = stack.add(entry("tmp/deep/new/x"), entry("file/x"))
    status = os.stat(upper / "tmp")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o1777, 1, 77)
    assert os.getxattr(upper / "tmp", "user.a") == b"1"
    status = os.stat(upper / "tmp" / "deep")
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, 2)
    for name in ("tmp/deep/new", "file"):
        status = os.stat(upper / name)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o755, 0)
    status = os.stat(upper)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o751, 9)


def test_a_nearer_layer_hides_a_further_one(stack: Stack) -> None:
    stack.add(*(entry(name, DIR, mode=0o700) for name in ("a", "a/b", "c", "c/d", "e")))
    stack.add(entry(".wh.a"), entry("c/.wh..wh..opq"), entry("e"))
    upper = stack.add(entry("a/b/x"), entry("c/d/x"), entry("e/x"))
    for name in ("a", "a/b", "c/d", "e"):
        assert stat.S_IMODE(os.stat(upper / name).st_mode) == 0o755, name
    assert sorted(stack.view()) == [".", "a", "a/b", "a/b/x", "c", "c/d", "c/d/x", "e", "e/x"]


def test_a_hard_link_into_a_lower_layer_copies_up(stack: Stack) -> None:
    content = os.urandom(200_000)
    stack.add(
        entry("d", DIR, mode=0o711),
        entry("d/f", FILE, content, mode=0o4711, uid=5, xattrs={"user.a": b"1"}),
        entry("s", SYMLINK, link="x", uid=6, xattrs={"trusted.a": b"2"}),
        entry("p", FIFO, mode=0o6711, uid=7, xattrs={"trusted.a": b"3"}),
    )
    upper = stack.add(
        entry("new", HARDLINK, link="d/f"),
        entry("t", HARDLINK, link="/s"),
        entry("q", HARDLINK, link="p"),
    )
    status = os.stat(upper / "new")
    assert status.st_ino == os.stat(upper / "d" / "f").st_ino
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o4711, 5)
    assert (upper / "new").read_bytes() == content
    assert os.getxattr(upper / "new", "user.a") == b"1"
    assert stat.S_IMODE(os.stat(upper / "d").st_mode) == 0o711
    assert os.readlink(upper / "t") == "x"
    assert os.getxattr(upper / "t", "trusted.a", follow_symlinks=False) == b"2"
    status = os.lstat(upper / "q")
    assert status.st_ino == os.lstat(upper / "p").st_ino
    assert (status.st_mode, status.st_uid) == (stat.S_IFIFO | 0o6711, 7)
    assert os.getxattr(upper / "q", "trusted.a", follow_symlinks=False) == b"3"


@pytest.mark.parametrize(
    "hiding", [[entry(".wh.d")], [entry("d/.wh.f")], [entry("d/.wh..wh..opq")]]
)
def test_a_hard_link_does_not_reach_what_is_hidden(stack: Stack, hiding: list[bytes]) -> None:
    stack.add(entry("d", DIR), entry("d/f"))
    with pytest.raises(NotFound):
        stack.add(*hiding, entry("new", HARDLINK, link="d/f"))


OLD = [entry("d", DIR), entry("d/old"), entry("d/sub", DIR), entry("d/sub/old"), entry("f")]


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ([entry(".wh.f")], "d d/old d/sub d/sub/old"),
        ([entry(".wh.d")], "f"),
        ([entry("d/.wh..wh..opq")], "d f"),
        ([entry("d/new"), entry("d/.wh..wh..opq")], "d d/new f"),
        ([entry("d/.wh..wh..opq"), entry("d/new")], "d d/new f"),
        ([entry("d/sub/new"), entry("d/.wh..wh..opq")], "d d/sub d/sub/new f"),
        ([entry(".wh.d"), entry("d", DIR), entry("d/new")], "d d/new f"),
        ([entry(".wh.d"), entry("d/new")], "d d/new f"),
        ([entry("d", DIR), entry("d/new"), entry(".wh.d")], "d d/new f"),
        ([entry("f"), entry(".wh.f")], "d d/old d/sub d/sub/old f"),
        ([entry(".wh.f"), entry("f", DIR)], "d d/old d/sub d/sub/old f"),
        ([entry("d", FILE)], "d f"),
        ([entry("d", FILE), entry("d", DIR)], "d f"),
        ([entry(".wh..wh.plnk/x"), entry(".wh..wh.aufs")], "d d/old d/sub d/sub/old f"),
        ([entry(".wh.none")], "d d/old d/sub d/sub/old f"),
    ],
)
def test_whiteouts_mean_the_same_in_both_modes(
    stack: Stack, tmp_path: Path, entries: list[bytes], left: str
) -> None:
    stack.add(*OLD)
    stack.add(*entries)
    assert sorted(set(stack.view()) - {"."}) == left.split()
    plain = tmp_path / "plain"
    plain.mkdir()
    apply(archive(*OLD), str(plain), whiteouts="plain")
    apply(archive(*entries), str(plain), whiteouts="plain")
    assert sorted(set(tree(plain)) - {"."}) == left.split()


def test_the_result_counts(tmp_path: Path) -> None:
    layer = archive(entry("d", DIR), entry("f", FILE, bytes(5000)), entry("e"))
    result = apply(gzip.compress(layer), str(tmp_path), sync=True)
    assert result["size_bytes"] == 4096 + 8192
    assert result["entries"] == 3
    assert result["compressed_bytes"] == len(gzip.compress(layer))


def test_the_result_counts_what_does_not_fit_into_an_inode(tmp_path: Path) -> None:
    small = [
        entry("short", SYMLINK, link="t" * 59),
        entry("p", FIFO),
        entry("capable", xattrs={"security.capability": b"\0\0\0\2" + bytes(16)}),
    ]
    large = [
        entry("long", SYMLINK, link="t" * 60),
        entry("named", xattrs={"user.a": bytes(500)}),
        entry("d", DIR, xattrs={"user.a": bytes(500)}),
    ]
    for number, (entries, blocks) in enumerate([(small, 0), (large, 4)]):
        (tmp_path / str(number)).mkdir()
        result = apply(archive(*entries), str(tmp_path / str(number)))
        assert result["size_bytes"] == blocks * 4096


def test_what_is_copied_up_is_charged_as_it_was_below(stack: Stack) -> None:
    stack.add(
        entry("f", FILE, b"x", xattrs={"user.a": bytes(500)}),
        entry("l", SYMLINK, link="t" * 60, xattrs={"trusted.a": bytes(500)}),
        entry("d", DIR, xattrs={"user.a": bytes(500)}),
    )
    for one in (entry("n", HARDLINK, link="f"), entry("n", HARDLINK, link="l"), entry("d/f")):
        with tempfile.TemporaryDirectory(dir=stack.base) as target:
            result = apply(archive(one), target, lowers=stack.lowers)
        assert result["size_bytes"] == 2 * 4096


@given(st.lists(st.sampled_from([b"..", b".", b"", b"a", b"b"]), max_size=8).map(b"/".join))
def test_clean_is_the_path_below_the_root(name: bytes) -> None:
    assert b"/" + clean(name) == os.path.normpath(b"/" + name).replace(b"//", b"/")
