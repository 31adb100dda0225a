"""Job `remap`: the owners of a snapshot's files, and what chown(2) would take from them."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.errors import InvalidArgument
from tests.unit.worker.harness import run_job

pytestmark = pytest.mark.root

UIDS, GIDS = [[0, 100000, 1000], [1000, 300000, 10]], [[0, 200000, 65536]]
# capabilities(7): version 2, effective, CAP_NET_RAW permitted.
RAW_V2 = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "plain").write_text("x")
    os.chown(root / "plain", 1000, 7)
    (root / "setuid").write_text("x")
    (root / "setuid").chmod(0o6755)
    (root / "capable").write_text("x")
    os.setxattr(root / "capable", "security.capability", RAW_V2)
    os.link(root / "plain", root / "deep" / "same")
    os.symlink("/etc/passwd", root / "deep" / "er" / "link")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.utime(root / "plain", ns=(1, 1))
    return root


def remap(mounts: list[Any], **job: Any) -> dict[str, Any]:
    return run_job({"job": "remap", "mounts": mounts, "uids": UIDS, "gids": GIDS, **job})


def owners(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (root, *root.rglob("*")):
        info = path.lstat()
        found[str(path.relative_to(root))] = (info.st_uid, info.st_gid)
    return found


EXPECTED = {
    **dict.fromkeys(
        (".", "deep", "deep/er", "deep/er/link", "setuid", "capable", "fifo", "null"),
        (100000, 200000),
    ),
    **dict.fromkeys(("plain", "deep/same"), (300000, 200007)),
}


def test_in_place(tree: Path) -> None:
    """As native snapshots are: a file of two names is one, and is given away once."""
    passwd = os.stat("/etc/passwd")
    assert remap([["bind", str(tree), ["rbind", "rw"]]]) == {"entries": 10}
    assert owners(tree) == EXPECTED
    assert (tree / "setuid").stat().st_mode & 0o7777 == 0o6755
    assert (tree / "plain").stat().st_mtime_ns == 1
    assert os.stat("/etc/passwd").st_uid == passwd.st_uid
    value = os.getxattr(tree / "capable", "security.capability")
    magic, permitted, *_, root = struct.unpack("<IIIIII", value)
    assert (magic, permitted, root) == (0x03000001, 1 << 13, 100000)


def test_on_an_overlay(tree: Path, tmp_path: Path) -> None:
    """A file of two names becomes two when it is copied up: each is given away."""
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    before = owners(tree)
    options = [f"lowerdir={tree}", f"upperdir={upper}", f"workdir={work}"]
    assert remap([["overlay", "overlay", options]]) == {"entries": 10}
    assert owners(tree) == before
    assert owners(upper) == EXPECTED
    value = os.getxattr(upper / "capable", "security.capability")
    assert struct.unpack("<IIIIII", value)[-1] == 100000


def test_an_owner_outside_of_the_mapping_is_named(tree: Path) -> None:
    os.chown(tree / "plain", 5000, 0)
    with pytest.raises(InvalidArgument, match=r"/(plain|deep/same) belongs to uid 5000"):
        remap([["bind", str(tree), ["rbind", "rw"]]])


@pytest.mark.parametrize("uids", [None, [], [[0, 1]], [[0, 1, "1"]]])
def test_a_mapping_that_is_none(tree: Path, uids: Any) -> None:
    with pytest.raises(InvalidArgument):
        remap([["bind", str(tree), ["rbind", "rw"]]], uids=uids)
