"""What a lost shim held on the host: the worker's job that frees it."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.shim import linux
from lighter.shim.worker import free
from lighter.shim.worker.channel import Channel

pytestmark = pytest.mark.root


def freed(rootfs: Path, cgroup: str = "") -> dict[str, object]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        job = {"job": "free", "cgroup": cgroup, "rootfs": str(rootfs), "pid": 0}
        return free.run(job, [], Channel(theirs))


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    while os.path.ismount(tmp_path):
        linux.umount(str(tmp_path), linux.MNT_DETACH)


def test_f03_a_root_is_unmounted_however_often_it_was_mounted(rootfs: Path) -> None:
    for size in ("size=1m", "size=2m"):
        linux.mount("tmpfs", str(rootfs), "tmpfs", data=size)
    assert freed(rootfs) == {"killed": False, "left": []}
    assert not os.path.ismount(rootfs)


def test_f03_a_root_that_is_in_use_goes_as_soon_as_it_is_not(rootfs: Path) -> None:
    linux.mount("tmpfs", str(rootfs), "tmpfs")
    with (rootfs / "open").open("w"):
        freed(rootfs)
        assert not os.path.ismount(rootfs)


def test_a_root_that_was_never_mounted_is_no_failure(rootfs: Path) -> None:
    for path in (rootfs, rootfs / "missing"):
        assert freed(path) == {"killed": False, "left": []}
