"""Random stacks of layers: side by side as one after another, and as containerd unpacks them."""

import asyncio
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.types import Mount
from lighter.shim import linux
from tests.containerd import Containerd
from tests.security.images import (
    CHAR,
    DIR,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    archive,
    entry,
    octal,
)
from tests.unit.images.build import Layout
from tests.unit.images.conftest import NS, Place
from tests.unit.images.test_unpack import Case
from tests.unit.worker.test_apply import tree

pytestmark = pytest.mark.root

SEEDS = range(12)
# vfs_ns_cap_data, revision 2: cap_net_bind_service, permitted.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


class Model:
    """What a stack shows so far: kinds by path, enough to make sensible further layers."""

    def __init__(self, rng: random.Random, *, links_below: bool) -> None:
        self.rng = rng
        self.links_below = links_below
        self.shown: dict[str, str] = {}
        self.not_directories: set[str] = set()
        self.facts: dict[str, dict[str, Any]] = {}

    def layer(self) -> bytes:
        here: dict[str, str] = {}
        hidden: set[str] = set()
        entries: list[bytes] = []
        for _ in range(self.rng.randint(3, 14)):
            path = "/".join(self.rng.choice("abcd") for _ in range(self.rng.randint(1, 3)))
            entries += self._entry(path, here, hidden)
        self._show(here, hidden)
        return archive(*entries)

    def _entry(self, path: str, here: dict[str, str], hidden: set[str]) -> list[bytes]:
        above = parents(path)
        if any(here.get(up, DIR_KIND) != DIR_KIND for up in above):
            return []
        # containerd refuses what is below a directory that some layer has as a file.
        if not self.links_below and self.not_directories & set(above):
            return []
        kind = self.rng.choice(["dir", "dir", "file", "file", "link", "hard", "fifo", "char", "wh"])
        if kind == "dir" and here.get(path, DIR_KIND) == DIR_KIND:
            made = [self._made(path, DIR)]
            if self.rng.random() < 0.2 and path not in hidden:
                made.append(entry(f"{path}/.wh..wh..opq"))
                hidden.add(path)
        elif path in here or any(below(name, path) for name in here):
            return []
        elif kind == "wh":
            if path not in self.shown or any(up in hidden for up in above):
                return []
            up, _, name = path.rpartition("/")
            made = [entry(f"{up}/.wh.{name}" if up else f".wh.{name}")]
        elif kind == "hard":
            targets = [name for name, of in here.items() if of == "file"]
            if self.links_below:
                targets += [
                    name
                    for name, of in self.shown.items()
                    if of == "file"
                    and not {name, *parents(name)} & hidden
                    and name not in here
                    and all(here.get(up, DIR_KIND) == DIR_KIND for up in parents(name))
                    and name != path
                    and not below(path, name)
                ]
            if not targets:
                return []
            target = self.rng.choice(sorted(targets))
            for up in parents(target):
                here.setdefault(up, DIR_KIND)
            here[target] = "file"
            self.facts[path] = self.facts[target]
            made = [entry(path, HARDLINK, link=target, **self.facts[path])]
            kind = "file"
        else:
            made = [self._made(path, {"file": FILE, "link": SYMLINK, "fifo": FIFO}.get(kind, CHAR))]
        for up in above:
            here.setdefault(up, DIR_KIND)
        here[path] = DIR_KIND if kind == "dir" else kind
        return made

    def _made(self, path: str, kind: bytes) -> bytes:
        rng = self.rng
        raw: dict[str, bytes] = {"mtime": octal(rng.randint(1, 1_600_000_000), 12)}
        xattrs: dict[str, bytes] = {}
        link, content = "", b""
        if kind == FILE:
            content = rng.randbytes(rng.choice([0, 5, 700, 5000]))
            if rng.random() < 0.3:
                xattrs["security.capability"] = CAPABILITY
        if kind in (FILE, DIR) and rng.random() < 0.3:
            xattrs[f"user.{rng.choice('xyz')}"] = rng.randbytes(4)
        if kind == SYMLINK:
            link = rng.choice(["a", "../b", "/c/d", "nowhere"])
        if kind == CHAR:
            raw |= {"major": octal(1, 8), "minor": octal(rng.randint(3, 9), 8)}
        facts = self.facts[path] = {
            "mode": rng.choice([0o755, 0o644, 0o1777, 0o4755, 0o2711, 0o600]),
            "uid": rng.choice([0, 0, 7, 65534]),
            "xattrs": xattrs,
            **raw,
        }
        return entry(path, kind, content, link, **facts)

    def _show(self, here: dict[str, str], hidden: set[str]) -> None:
        self.not_directories |= {path for path, kind in here.items() if kind != DIR_KIND}
        kept = {}
        for path, kind in self.shown.items():
            covered = any(
                up in hidden or here.get(up, DIR_KIND) != DIR_KIND for up in parents(path)
            )
            if not covered and path not in here:
                kept[path] = kind
        self.shown = kept | {path: kind for path, kind in here.items() if kind != "wh"}


DIR_KIND = "dir"


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def below(path: str, top: str) -> bool:
    return path.startswith(top + "/")


class Backwards:
    """A LayerSource that begins to arrive when the layer above it has arrived."""

    def __init__(self, data: bytes, after: "Backwards | None") -> None:
        self.data = data
        self.after = after
        self.arrived = threading.Event()

    def open(self) -> int:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._feed, args=(write_end,), daemon=True).start()
        return read_end

    def _feed(self, write_end: int) -> None:
        if self.after is not None:
            assert self.after.arrived.wait(20)
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(self.data)
        self.arrived.set()

    async def whole(self) -> None:
        assert await asyncio.to_thread(self.arrived.wait, 20)


def make_layers(seed: int, *, links_below: bool) -> list[bytes]:
    rng = random.Random(seed)
    model = Model(rng, links_below=links_below)
    found: dict[bytes, None] = {}
    for _ in range(rng.randint(2, 7)):
        found[model.layer()] = None
    return list(found)


def view(place: Place, key: str, started_ns: int) -> dict[str, Any]:
    """The tree of a committed snapshot, without the times that nobody set."""
    mounts: tuple[Mount, ...] = place.run(place.overlay.view(NS, "look", key))
    point = place.root / "merged"
    point.mkdir()
    linux.mount_all([(m.type, m.source, list(m.options)) for m in mounts], str(point))
    try:
        return set_times(tree(point), started_ns)
    finally:
        linux.umount(str(point))
        point.rmdir()
        place.run(place.overlay.remove(NS, "look"))


def set_times(found: dict[str, Any], started_ns: int) -> dict[str, Any]:
    return {
        name: (*facts[:6], facts[6] if facts[6] < started_ns else "now", facts[7])
        for name, facts in found.items()
    }


def unpacked(place: Place, layers: Sequence[bytes], at_once: int) -> dict[str, Any]:
    started_ns = time.time_ns() - 10**9
    case = Case(place, layers, at_once)
    sources: list[Backwards | None] = [None] * len(layers)
    if at_once >= len(layers):
        after = None
        for number in reversed(range(len(layers))):
            after = sources[number] = Backwards(layers[number], after)
    place.run(case.unpack(*sources))
    found = view(place, case.chain[-1], started_ns)
    place.run(place.images.delete(NS, "docker.io/library/test:1"))
    assert place.is_empty()
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_sec_16_layers_side_by_side_give_the_tree_of_one_after_another(
    place: Place, seed: int
) -> None:
    layers = make_layers(seed, links_below=True)
    serial = unpacked(place, layers, 1)
    for at_once in (2, len(layers) + 1):
        assert unpacked(place, layers, at_once) == serial


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as started:
        yield started


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_give_the_tree_that_containerd_makes(
    place: Place, containerd: Containerd, tmp_path: Path, seed: int
) -> None:
    layers = make_layers(1000 + seed, links_below=False)
    built = Layout()
    built.list(built.image([], blobs=layers), name=f"docker.io/library/stack:{seed}")
    file = tmp_path / "image.tar"
    file.write_bytes(built.archive())
    containerd.ctr("images", "import", str(file))
    with containerd.mounted(f"docker.io/library/stack:{seed}", tmp_path / "merged") as point:
        theirs = untimed(tree(point))
    assert untimed(unpacked(place, layers, 3)) == theirs


def untimed(found: dict[str, Any]) -> dict[str, Any]:
    """Without the times of directories, which containerd lets change with what is made in them."""
    return {
        name: (*facts[:6], *((facts[6],) if facts[0] & 0o170000 != 0o040000 else ()), facts[7])
        for name, facts in found.items()
    }


def test_what_gnu_tar_writes_is_what_containerd_makes(
    place: Place, containerd: Containerd, tmp_path: Path
) -> None:
    """Holes, setuid, nanoseconds, attributes, file capabilities, devices, links of both kinds."""
    folder = tmp_path / "from"
    (folder / "dir/below").mkdir(parents=True)
    with (folder / "holes").open("wb") as file:
        file.seek(300_000)
        file.write(b"after the hole")
        file.truncate(500_000)
    (folder / "setuid").write_bytes(b"#!")
    os.chown(folder / "setuid", 3, 4)
    os.chmod(folder / "setuid", 0o6755)
    # On a file of one name: containerd changes the owner of further ones, which takes it away.
    (folder / "capable").write_bytes(b"#!")
    os.chown(folder / "capable", 3, 4)
    os.setxattr(folder / "capable", "security.capability", CAPABILITY)
    os.setxattr(folder / "dir", "user.a", b"\0\1binary")
    os.chmod(folder / "dir", 0o1777)
    os.link(folder / "setuid", folder / "dir/below/hard")
    os.symlink("../setuid", folder / "dir/soft")
    os.mkfifo(folder / "fifo", 0o611)
    os.mknod(folder / "null", 0o020666, os.makedev(1, 3))
    os.mknod(folder / "loop", 0o060600, os.makedev(7, 0))
    os.lchown(folder / "dir/soft", 5, 6)
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number + 1), follow_symlinks=False)
    for form in ("--format=gnu", "--format=posix"):
        # containerd knows no sparse entries of GNU's own format, and that has no attributes.
        more = ["--sparse", "--xattrs", "--xattrs-include=*"] if form == "--format=posix" else []
        words = ["tar", "-c", "--numeric-owner", form, *more, "-C", str(folder), "."]
        layer = subprocess.run(words, check=True, capture_output=True).stdout
        name = f"docker.io/library/gnu:{form[-3:]}"
        built = Layout()
        built.list(built.image([], blobs=[layer]), name=name)
        file_ = tmp_path / "image.tar"
        file_.write_bytes(built.archive())
        containerd.ctr("images", "import", str(file_))
        with containerd.mounted(name, tmp_path / "merged") as point:
            theirs = untimed(tree(point))
        ours = untimed(unpacked(place, [layer], 3))
        assert ours == theirs
        assert len(theirs) == 11
        if more:
            assert untimed(set_times(tree(folder), time.time_ns())) == ours
