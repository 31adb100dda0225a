"""Files that a caller hands over: it gets no more by it than it has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.rpc.handed import open_source, open_target
from lighter.proto.errors import InvalidArgument, PermissionDenied

PID = os.getpid()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    return path


@pytest.fixture
def handed() -> Iterator["Handed"]:
    handed = Handed()
    yield handed
    for fd in handed.fds:
        os.close(fd)


class Handed:
    def __init__(self) -> None:
        self.fds: list[int] = []

    def __call__(self, path: Path, flags: int) -> str:
        self.fds.append(os.open(path, flags | os.O_CLOEXEC))
        return f"/proc/{PID}/fd/{self.fds[-1]}"


@pytest.mark.parametrize("append", [True, False], ids=["append", "anew"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["reading", "naming"])
def test_what_may_not_be_written_is_no_target(
    file: Path, handed: Handed, flags: int, append: bool
) -> None:
    with pytest.raises(PermissionDenied, match=r"open for (reading|naming) alone"):
        open_target("write", handed(file, flags), PID, append=append)
    assert file.read_bytes() == b"as it was"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH], ids=["writing", "naming"])
def test_what_may_not_be_read_is_no_source(file: Path, handed: Handed, flags: int) -> None:
    """To name a file by O_PATH takes no right to it."""
    with pytest.raises(PermissionDenied, match=r"open for (writing|naming) alone"):
        open_source("read", handed(file, flags), PID)


def test_what_may_be_is_one(file: Path, handed: Handed) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        fd = open_source("read", handed(file, flags), PID)
        assert os.read(fd, 100) == b"as it was"
        os.close(fd)
    for append in (False, True):
        fd = open_target("write", handed(file, os.O_WRONLY), PID, append=append)
        os.write(fd, b"NEW")
        os.close(fd)
    assert file.read_bytes() == b"NEWit wasNEW"
    read_end, write_end = os.pipe()
    handed.fds += [read_end, write_end]
    for fd in (
        open_source("read", f"/proc/{PID}/fd/{read_end}", PID),
        open_target("write", f"/proc/{PID}/fd/{write_end}", PID),
    ):
        os.close(fd)
    with pytest.raises(PermissionDenied):
        open_source("read", f"/proc/{PID}/fd/{write_end}", PID)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/proc/1/fd/1", "/proc/{pid}/fd/{dir}/file", "/proc/{pid}/fd/../cmdline"],
)
def test_only_a_descriptor_itself_is_one(
    tmp_path: Path, file: Path, handed: Handed, path: str
) -> None:
    handed(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    named = path.format(pid=PID, dir=handed.fds[0])
    for opened in (open_source, open_target):
        with pytest.raises(InvalidArgument, match="it is no descriptor of process"):
            opened("use", named, PID)


def test_no_other_kind_of_file_is_one(handed: Handed) -> None:
    with pytest.raises(InvalidArgument, match="neither a file nor a pipe"):
        open_source("read", handed(Path("/dev/null"), os.O_RDONLY), PID)
