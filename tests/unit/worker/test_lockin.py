"""What a locked-in process can still reach, asked from inside."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls

pytestmark = pytest.mark.root

# linux/prctl.h
_PR_CAPBSET_READ, _PR_GET_NO_NEW_PRIVS = 23, 39


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked child, or the text of what it raised."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 2)
            try:
                result = work()
            except BaseException as err:
                result = repr(err)
            os.write(2, msgpack.packb(result))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        packed = file.read()
    os.waitpid(pid, 0)
    return msgpack.unpackb(packed)


def error_of(act: Callable[..., Any], *args: Any) -> str:
    try:
        act(*args)
    except OSError as err:
        return type(err).__name__
    return "done"


def test_sec_02_nothing_but_the_binds_is_reachable(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("x")
    (tmp_path / "b").mkdir()

    def look() -> Any:
        lockin.close_all_but([])
        lockin.enter(
            [
                lockin.Bind(str(tmp_path / "a"), "target"),
                lockin.Bind(str(tmp_path / "b"), "lower/0", lockin.READ_ONLY),
            ],
            (),
        )
        fd = os.open("/target", os.O_RDONLY)
        return {
            "root": sorted(os.listdir("/")),
            "above": sorted(os.listdir("/../..")),
            "above target": sorted(os.listdir(os.open("..", os.O_RDONLY, dir_fd=fd))),
            "target": os.listdir("/target"),
            "write target": error_of(os.mkdir, "/target/new"),
            "write lower": error_of(os.mkdir, "/lower/0/new"),
            "write root": error_of(os.mkdir, "/new"),
            "mount": error_of(linux.mount, "x", "/target", "tmpfs"),
            "unshare": error_of(linux.unshare, linux.CLONE_NEWNS),
            "chroot": error_of(os.chroot, "/target"),
            "mknod": error_of(os.mknod, "/target/dev", 0o20600, os.makedev(1, 3)),
        }

    assert in_child(look) == {
        "root": ["lower", "target"],
        "above": ["lower", "target"],
        "above target": ["lower", "target"],
        "target": ["mine"],
        "write target": "done",
        "write lower": "OSError",
        "write root": "OSError",
        "mount": "PermissionError",
        "unshare": "PermissionError",
        "chroot": "PermissionError",
        "mknod": "PermissionError",
    }
    assert sorted(os.listdir(tmp_path / "a")) == ["mine", "new"]


def test_a_device_in_the_target_cannot_be_opened(tmp_path: Path) -> None:
    def attempt() -> str:
        lockin.enter([lockin.Bind(str(tmp_path), "target")], (syscalls.CAP_MKNOD,))
        os.mknod("/target/null", 0o20666, os.makedev(1, 3))
        return error_of(os.open, "/target/null", os.O_RDONLY)

    assert in_child(attempt) == "PermissionError"


def test_sec_11_no_program_would_give_more_rights() -> None:
    """Not one with the set-user-ID bit, nor one with capabilities of its own: prctl(2)."""

    def look() -> list[int]:
        lockin.drop_privileges((syscalls.CAP_CHOWN,))
        libc = ctypes.CDLL(None)
        bounding = [libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) for number in range(38)]
        return [libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), sum(bounding)]

    assert in_child(look) == [1, 0]


def test_the_host_sees_no_mount(tmp_path: Path) -> None:
    """Even where what is mounted in one namespace is seen in others, as systemd has it."""

    def ours() -> list[str]:
        """Of the worker or of this test: others may mount meanwhile."""
        marks = ("lighter-worker", str(tmp_path))
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if any(mark in line for mark in marks)]

    def host() -> list[Any]:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("", "/", "", linux.MS_REC | linux.MS_SHARED)
        before = ours()
        found = in_child(lambda: lockin.enter([lockin.Bind(str(tmp_path), "target")], ()))
        return [found, ours() == before]

    assert in_child(host) == [None, True]


def test_other_descriptors_are_closed() -> None:
    def count() -> list[int]:
        kept = [os.dup(2), os.dup(2), os.dup(2)]
        lockin.close_all_but([kept[1]])
        return [fd - kept[1] for fd in range(3, 4096) if error_of(os.fstat, fd) == "done"]

    assert in_child(count) == [0]


def test_an_architecture_whose_system_call_is_not_known_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A number of another architecture's would be some other system call here."""
    monkeypatch.setattr(linux, "_SYS_PIVOT_ROOT", {})
    with pytest.raises(OSError, match=f"pivot_root: its number on {os.uname().machine} is not"):
        linux.pivot_root("/proc/none", "/proc/none")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    found = in_child(lambda: lockin.enter([lockin.Bind(str(tmp_path / "gone"), "target")], ()))
    assert found.startswith("NotFound")
    assert "gone" in found
