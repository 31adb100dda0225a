"""Directories found name by name: how much work a hostile link can ask for."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto.errors import InvalidArgument
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
