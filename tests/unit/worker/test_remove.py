"""Job `remove` and the function under it: what goes, what stays, what is never touched."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.errors import InvalidArgument
from lighter.shim.worker.remove import remove_tree
from tests.unit.worker.harness import run_job

pytestmark = pytest.mark.root


def remove(path: Path) -> dict[str, Any]:
    return run_job({"job": "remove", "dir": str(path)})


def test_everything_goes_and_no_link_is_followed(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "f").write_text("x")
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "f").write_text("x")
    os.symlink(keep, top / "a" / "link")
    os.symlink("..", top / "a" / "b" / "up")
    os.mkfifo(top / "fifo")
    os.link(keep / "f", top / "hard")
    os.chmod(top / "a", 0)
    assert remove(top) == {"removed": 8, "left_count": 0, "left": []}
    assert os.listdir(tmp_path) == ["keep"]
    assert (keep / "f").read_text() == "x"


@pytest.mark.parametrize("kind", ["file", "link", "nothing"])
def test_the_top_need_not_be_a_directory(tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").mkdir()
    if kind == "file":
        (tmp_path / "top").touch()
    elif kind == "link":
        os.symlink("other", tmp_path / "top")
    fd = os.open(tmp_path, os.O_PATH)
    assert remove_tree(fd, b"top").removed == (kind != "nothing")
    os.close(fd)
    assert os.listdir(tmp_path) == ["other"]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A place for a tree that is too deep for shutil.rmtree, with which pytest cleans up."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path / "top"], check=True)


def test_depth_has_no_limit(deep: Path) -> None:
    """Deeper than descriptors, than recursion, than a path can be."""
    top = os.open(deep, os.O_PATH)
    os.mkdir("top", dir_fd=top)
    here = os.open("top", os.O_PATH, dir_fd=top)
    for number in range(3000):
        os.mkdir("d", dir_fd=here)
        if number % 7 == 0:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert remove(deep / "top")["left_count"] == 0
    assert os.listdir(deep) == []
    os.close(top)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tree with a bind mount of the same file system, and one of a file."""
    source, top = tmp_path / "source", tmp_path / "top"
    for path in (source, top / "a" / "point", top / "b"):
        path.mkdir(parents=True)
    (source / "precious").write_text("x")
    (top / "a" / "file").touch()
    subprocess.run(["mount", "--bind", source, top / "a" / "point"], check=True)
    subprocess.run(["mount", "--bind", source / "precious", top / "a" / "file"], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", top / "a" / "point"], check=True)
        subprocess.run(["umount", top / "a" / "file"], check=True)


def test_sec_62_a_mount_is_never_entered(mounted: Path) -> None:
    for _ in range(2):
        result = remove(mounted)
        assert sorted(result["left"]) == [
            ["top/a/file", "a mount is on it"],
            ["top/a/point", "a mount is on it"],
        ]
    assert sorted(os.listdir(mounted / "a")) == ["file", "point"]
    assert os.listdir(mounted) == ["a"]
    assert (mounted.parent / "source" / "precious").read_text() == "x"
    fd = os.open(mounted.parent, os.O_PATH)
    assert remove_tree(fd, b"top").left_count == 2
    os.close(fd)
    assert (mounted.parent / "source" / "precious").read_text() == "x"


def test_an_immutable_file_is_reported_and_the_rest_goes(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    for name in ("a/one", "a/stays", "two"):
        (top / name).touch()
    subprocess.run(["chattr", "+i", top / "a" / "stays"], check=True)
    try:
        result = remove(top)
    finally:
        subprocess.run(["chattr", "-i", top / "a" / "stays"], check=True)
    assert result["left"] == [["top/a/stays", "Operation not permitted"]]
    assert [path.name for path in sorted(top.rglob("*"))] == ["a", "stays"]


@pytest.mark.parametrize("path", ["/", "relative", "/a/../b", "/a//b", "/a/", "", None, 5])
def test_only_clean_absolute_paths(path: Any) -> None:
    with pytest.raises(InvalidArgument):
        run_job({"job": "remove", "dir": path})
