"""Directories found name by name: how much work a hostile link can ask for."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto.errors import InvalidArgument
from lighter.shim.worker.metadata import LateTimes
from lighter.shim.worker.tree import Directory, Tree

DEPTH = 1000
DOWN = "/" + "a/" * DEPTH


def no_parent(_parent: Directory, name: bytes) -> None:
    raise AssertionError(f"{name!r} was to be made")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree of directories in each other, which pytest could not remove."""
    top = tmp_path_factory.mktemp("tree") / "top"
    subprocess.run(["mkdir", "-p", f"{top}{DOWN}"], check=True)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From the call on so many names may be opened."""

    def bound(most: int) -> None:
        real, left = os.open, iter(range(most))

        def counted(path: bytes, *args: int, **kwargs: int) -> int:
            assert next(left, None) is not None, f"more than {most} names are opened"
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", counted)

    return bound


def find(top: Path, path: bytes) -> bytes | None:
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    tree = Tree(root, no_parent)
    try:
        found = tree.find(path)
        return found and found.path
    finally:
        tree.close()
        os.close(root)


def test_the_way_up_costs_no_new_way_down(deep: Path, at_most: Callable[[int], None]) -> None:
    (deep / "up").symlink_to(DOWN + "../" * 680)
    at_most(6 * DEPTH)
    assert find(deep, b"up") == b"/".join([b"a"] * 320)


def test_sec_08_links_that_lead_up_and_down_again_are_given_up(
    deep: Path, at_most: Callable[[int], None]
) -> None:
    os.symlink(DOWN + "../" * 680 + "again", f"{deep}/{'a/' * 320}again")
    at_most(12 * DEPTH)
    with pytest.raises(InvalidArgument, match="it leads through more than"):
        find(deep, b"a/" * 320 + b"again")


def test_a_path_as_long_as_may_be_is_found(deep: Path) -> None:
    assert find(deep, (b"a/" * DEPTH + b"./" * 4000)[:4095]) == b"/".join([b"a"] * DEPTH)


def test_sec_08_directories_in_each_other_are_one_step_each(
    deep: Path, at_most: Callable[[int], None]
) -> None:
    """Many as those that a layer implies, and all of it that have times."""
    root = os.open(deep, os.O_RDONLY | os.O_DIRECTORY)
    tree, times = Tree(root, no_parent), LateTimes()
    paths = [b"/".join([b"a"] * depth) for depth in range(1, DEPTH + 1)]
    at_most(3 * DEPTH)
    try:
        for path in paths:
            directory = tree.at(path)
            assert directory is not None and directory.path == path
            times.set(directory, 0, 10**9)
        times.put_on(tree)
        last = tree.at(paths[-1])
        assert last is not None and os.fstat(last.fd).st_mtime_ns == 10**9
        assert tree.at(paths[-1] + b"/a") is None
    finally:
        tree.close()
        os.close(root)


def test_a_real_path_leads_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("d")
    (tmp_path / "f").touch()
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    tree = Tree(root, no_parent)
    try:
        assert [tree.at(path) for path in (b"l", b"l/x", b"f", b"f/x", b"x", b"d/x")] == [None] * 6
        directory = tree.at(b"d")
        assert directory is not None and directory.path == b"d"
        assert tree.at(b"") is tree.root
    finally:
        tree.close()
        os.close(root)
