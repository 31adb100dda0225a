"""Layers made of two snapshots: applied, they make the same tree; they say what ctr's say."""

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lighter.daemon.images.worker import tree_remover
from lighter.daemon.snapshots import erofsimage
from lighter.daemon.snapshots.erofs import ErofsSnapshotter
from lighter.daemon.snapshots.service import SnapshotService
from lighter.shim import linux
from tests.containerd import Containerd
from tests.security.images import archive, entry
from tests.unit.images.build import Layout
from tests.unit.images.conftest import NS, Place
from tests.unit.images.test_stacks import CAPABILITY, make_layers, untimed, view
from tests.unit.images.test_unpack import Case
from tests.unit.worker.test_apply import tree

pytestmark = pytest.mark.root


def diff(
    place: Place, lower: str, upper: str, how: str = "", snapshotter: str = "overlayfs"
) -> tuple[bytes, dict[str, Any]]:
    service = SnapshotService(place.db, place.snapshotters, snapshotter, place.worker)
    fd = os.memfd_create("layer")
    try:
        said = place.run(service.diff(NS, "", (lower, upper), fd, how))
        return os.pread(fd, os.fstat(fd).st_size, 0), said
    finally:
        os.close(fd)


def change(root: Path) -> None:
    """What a container might do to the tree of `base`."""
    (root / "kept").write_bytes(b"changed")
    (root / "dir/gone").unlink()
    (root / "whole/inside").unlink()
    (root / "whole").rmdir()
    (root / "new/deep").mkdir(parents=True)
    (root / "new/deep/file").write_bytes(os.urandom(100_000))
    (root / ("long-" * 30)).write_bytes(b"long name")
    os.link(root / "new/deep/file", root / "hard")
    os.symlink("new/deep", root / "soft")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.chown(root / "owned", 3_000_000, 7)
    os.chmod(root / "owned", 0o4711)
    os.setxattr(root / "owned", "security.capability", CAPABILITY)
    os.setxattr(root / "dir", "user.a", b"\0\1\n=")
    (root / "file-then-dir").unlink()
    (root / "file-then-dir").mkdir()
    os.utime(root / "soft", ns=(5, 123_456_789_123_456_789), follow_symlinks=False)


def base() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name in ("kept", "same", "dir/gone", "dir/stays", "whole/inside", "owned"):
            for parent in [str(up) for up in Path(name).parents if str(up) != "."]:
                entry = tarfile.TarInfo(parent)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1000
                opened.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(name), 1234.5
            opened.addfile(entry, io.BytesIO(name.encode()))
        opened.addfile(tarfile.TarInfo("file-then-dir"))
    return out.getvalue()


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
def test_a_diff_applied_on_the_lower_gives_the_upper(place: Place, how: str) -> None:
    case = Case(place, [base()])
    place.run(case.unpack())
    mounts = place.run(place.overlay.prepare(NS, "work", case.chain[0]))
    point = place.root / "m"
    point.mkdir()
    linux.mount_all([(m.type, m.source, list(m.options)) for m in mounts], str(point))
    change(point)
    wanted = tree(point)
    linux.umount(str(point))

    stored, said = diff(place, case.chain[0], "work", how)
    layer = {"": bytes, "gzip": gzip.decompress, "zstd": unzstd}[how](stored)
    assert said["diff_id"] == "sha256:" + hashlib.sha256(layer).hexdigest()
    assert said["digest"] == "sha256:" + hashlib.sha256(stored).hexdigest()
    assert said["size_bytes"] == len(stored)
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        names = opened.getnames()
    assert "same" not in names
    assert "dir/stays" not in names

    place.run(place.images.delete(NS, "docker.io/library/test:1"))
    again = Case(place, [base(), layer])
    place.run(again.unpack())
    found = view(place, again.chain[-1], time.time_ns() + 10**12)
    assert found == wanted


def unzstd(stored: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(stored)


@pytest.mark.parametrize("seed", range(4))
def test_sums_of_random_layers(place: Place, seed: int) -> None:
    """All of a stack as one layer upon nothing, and its upper half upon the lower one."""
    started_ns = time.time_ns() - 10**9
    layers = make_layers(50 + seed, links_below=True)
    case = Case(place, layers)
    place.run(case.unpack())
    wanted = view(place, case.chain[-1], started_ns)
    middle = len(layers) // 2
    whole, _ = diff(place, "", case.chain[-1])
    upper, _ = diff(place, case.chain[middle - 1], case.chain[-1])
    assert not [key for key in place.snapshot_keys() if key.startswith("diff-")]
    for parts in ([whole], [*layers[:middle], upper]):
        place.run(place.images.delete(NS, "docker.io/library/test:1"))
        again = Case(place, parts)
        place.run(again.unpack())
        found = view(place, again.chain[-1], started_ns)
        assert without_root_time(found) == without_root_time(wanted)


def without_root_time(found: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[:6] if name == "." else facts for name, facts in found.items()}


@pytest.mark.parametrize("name", ["overlayfs", "native", "erofs"])
def test_bytes_tell_files_of_one_size_and_time_apart(place: Place, name: str) -> None:
    """An image's times are whole seconds: tar and cp -p put them on what they replace."""
    snapshotter = place.snapshotters.get(name)
    if snapshotter is None:
        if why := erofsimage.missing():
            pytest.skip(why)
        remove = tree_remover(place.worker)
        above = str(place.root / "snapshots")
        snapshotter = ErofsSnapshotter(above, place.db, place.log, remove)
        place.snapshotters[name] = snapshotter
    with ExitStack() as undo:
        for key, below, files in (
            ("base", "", {"kept": b"below", "same": b"below", "touched": b"below"}),
            ("top", "base", {"kept": b"above", "touched": b"below"}),
        ):
            mounts = place.run(snapshotter.prepare(NS, f"{key}-work", below))
            point = place.root / key
            point.mkdir()
            linux.mount_all([(m.type, m.source, list(m.options)) for m in mounts], str(point))
            for path, data in files.items():
                (point / path).unlink(missing_ok=True)
                (point / path).write_bytes(data)
                os.utime(point / path, (1234, 1234))
            linux.umount(str(point))
            place.run(snapshotter.commit(NS, key, f"{key}-work"))
            undo.callback(lambda key=key: place.run(snapshotter.remove(NS, key)))
        layer, _ = diff(place, "base", "top", snapshotter=name)
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        assert opened.getnames() == ["kept"]


def test_attributes_of_one_host_stay_on_it(place: Place) -> None:
    """A label is of the host's policy, and of the one container whose level it has."""
    label = {"security.selinux": b"system_u:object_r:container_file_t:s0:c1,c2\0"}
    local = {**label, "security.ima": b"\1hash", "trusted.x": b"1"}
    files = [entry(name, xattrs={**label, "user.a": b"1"}) for name in ("same", "new", "dir/in")]
    case = Case(place, [archive(*files)])
    place.run(case.unpack())
    mounts = place.run(place.overlay.prepare(NS, "work", case.chain[0]))
    point = place.root / "m"
    point.mkdir()
    linux.mount_all([(m.type, m.source, list(m.options)) for m in mounts], str(point))
    unpacked = os.listxattr(point / "same")
    (point / "new").write_bytes(b"x")
    os.symlink("new", point / "link")
    for path in ("same", "new", "dir", "link"):
        for name, value in local.items():
            os.setxattr(point / path, name, value, follow_symlinks=False)
    linux.umount(str(point))
    assert unpacked == ["user.a"]
    layer, _ = diff(place, case.chain[0], "work")
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        found = {
            member.name: [name for name in member.pax_headers if "xattr" in name]
            for member in opened
        }
    assert found == {"new": ["SCHILY.xattr.user.a"], "link": []}


def test_a_diff_says_what_ctrs_says(place: Place, tmp_path: Path) -> None:
    case = Case(place, [base()])
    place.run(case.unpack())
    mounts = place.run(place.overlay.prepare(NS, "work", case.chain[0]))
    point = tmp_path / "m"
    point.mkdir()
    linux.mount_all([(m.type, m.source, list(m.options)) for m in mounts], str(point))
    change(point)
    linux.umount(str(point))
    ours, _ = diff(place, case.chain[0], "work")

    built = Layout()
    built.list(built.image([], blobs=[base()]), name="docker.io/library/base:1")
    (tmp_path / "image").write_bytes(built.archive())
    with Containerd() as containerd:
        containerd.ctr("images", "import", str(tmp_path / "image"))
        command = containerd.ctr(
            "snapshots", "prepare", "-t", str(point), "work", case.chain[0]
        ).decode()
        subprocess.run(command, shell=True, check=True)
        change(point)
        subprocess.run(["umount", point], check=True)
        theirs = gzip.decompress(containerd.ctr("snapshots", "diff", "work"))
    assert listed(ours) == listed(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_ctrs_diff_of_a_random_stack_leads_to_the_same_tree_as_ours(
    place: Place, tmp_path: Path, seed: int
) -> None:
    """The upper half of a stack as one layer: theirs and ours, each upon the lower half."""
    started_ns = time.time_ns() - 10**9
    layers = make_layers(90 + seed, links_below=False)
    case = Case(place, layers)
    place.run(case.unpack())
    wanted = view(place, case.chain[-1], started_ns)
    middle = len(layers) // 2
    ours, _ = diff(place, case.chain[middle - 1], case.chain[-1])
    built = Layout()
    built.list(built.image([], blobs=layers), name="docker.io/library/stack:1")
    (tmp_path / "image").write_bytes(built.archive())
    with Containerd() as containerd:
        containerd.ctr("images", "import", str(tmp_path / "image"))
        ends = (case.chain[middle - 1], case.chain[-1])
        theirs = gzip.decompress(containerd.ctr("snapshots", "diff", *ends))
    found = []
    for upper in (ours, theirs):
        place.run(place.images.delete(NS, "docker.io/library/test:1"))
        again = Case(place, [*layers[:middle], upper])
        place.run(again.unpack())
        found.append(view(place, again.chain[-1], started_ns))
    assert without_root_time(found[0]) == without_root_time(wanted)
    assert as_containerd_keeps_it(found[1]) == as_containerd_keeps_it(wanted)


def as_containerd_keeps_it(found: dict[str, Any]) -> dict[str, Any]:
    """Without directories' times, and of attributes the one that its diffs have."""
    return {
        name: (*facts[:-1], facts[-1].get("security.capability"))
        for name, facts in untimed(found).items()
    }


def listed(layer: bytes) -> set[tuple[Any, ...]]:
    """What an archive says of each name, but times (of two changes) and whiteouts' attributes."""
    found = set()
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        items = opened.getmembers()
    for item in items:
        mark = ".wh." in item.name
        # Of attributes containerd writes this one alone.
        capability = item.pax_headers.get("SCHILY.xattr.security.capability")
        facts = (item.mode & 0o7777, item.uid, item.gid, capability)
        found.add((item.name, item.type, item.linkname, item.size, *(() if mark else facts)))
    return found
