"""Job `relabel`: what gets the label, and what is never reached.

On a kernel without SELinux the attribute is one like others, which root may set.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.errors import InvalidArgument, NotFound, PermissionDenied
from lighter.shim.worker.relabel import ATTRIBUTE, Relabelling
from tests.unit.worker.harness import run_job

LABEL = b"system_u:object_r:container_file_t:s0:c1,c2"

pytestmark = pytest.mark.root
plain_attribute = pytest.mark.skipif(
    os.path.exists("/sys/fs/selinux/enforce"), reason="SELinux knows no label that is made up"
)


def label(path: Path) -> bytes:
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False)
    except OSError:
        return b""


def walked(top: Path, walk: Relabelling | None = None) -> tuple[int, int]:
    walk = walk or Relabelling(os.fsencode(top), LABEL, {})
    fd, before = os.open(top, os.O_RDONLY), os.getcwd()
    try:
        walk.tree(fd)
    finally:
        os.close(fd)
        os.chdir(before)
    return walk.entries, walk.changed


@contextmanager
def bound(source: Path | str, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", source, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree, and beside it `outside` with a file that links in it lead to."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    (top / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").touch()
    for name in ("file", "a/file", "a/b/file"):
        (top / name).touch()
    (top / "to-file").symlink_to(outside / "secret")
    (top / "a" / "to-directory").symlink_to(outside)
    (top / "a" / "up").symlink_to("../../outside")
    os.mkfifo(top / "fifo")
    return top


@plain_attribute
def test_all_of_a_tree_gets_it_and_no_link_is_followed(tree: Path) -> None:
    assert walked(tree) == (10, 10)
    names = ("", "a", "a/b", "file", "a/file", "a/b/file", "to-file", "a/to-directory", "a/up")
    for name in (*names, "fifo"):
        assert label(tree / name) == LABEL, name
    outside = tree.parent / "outside"
    assert (label(outside), label(outside / "secret"), label(tree.parent)) == (b"", b"", b"")
    os.setxattr(tree / "file", ATTRIBUTE, b"another")
    os.setxattr(tree / "a" / "file", ATTRIBUTE, LABEL + b"\0")  # as other programs write it
    assert walked(tree) == (10, 1)
    assert label(tree / "file") == LABEL


class Swapping(Relabelling):
    """Its tree is changed by somebody else at the worst moment: `swap` runs when `at` comes."""

    def set(self, at: bytes, swap: Any) -> "Swapping":
        self.at, self.swap = at, swap
        return self

    def entry(self, target: int | bytes, path: bytes, *, follow: bool) -> None:
        if target == self.at:
            self.at = b""
            self.swap()
        super().entry(target, path, follow=follow)


@plain_attribute
@pytest.mark.parametrize("becomes", ["link", "file", "nothing"])
def test_a_directory_that_is_swapped_meanwhile_leads_nowhere(tree: Path, becomes: str) -> None:
    def swap() -> None:
        (tree / "a").rename(tree.parent / "away")
        if becomes == "link":
            (tree / "a").symlink_to(tree.parent / "outside")
        elif becomes == "file":
            (tree / "a").touch()

    walked(tree, Swapping(os.fsencode(tree), LABEL, {}).set(b"file", swap))
    assert label(tree / "file") == LABEL
    for path in ("outside", "outside/secret", "away", "away/file"):
        assert label(tree.parent / path) == b"", path


@plain_attribute
def test_a_file_that_is_swapped_meanwhile_leads_nowhere(tree: Path) -> None:
    def swap() -> None:
        (tree / "file").unlink()
        (tree / "file").symlink_to(tree.parent / "outside" / "secret")

    walked(tree, Swapping(os.fsencode(tree), LABEL, {}).set(b"file", swap))
    assert label(tree / "file") == LABEL
    assert label(tree.parent / "outside" / "secret") == b""


@plain_attribute
def test_what_is_mounted_in_it_is_relabelled_too_but_no_directory_of_the_system(
    tree: Path,
) -> None:
    outside = tree.parent / "outside"
    with bound(outside, tree / "a" / "b"):
        walked(tree)
        assert label(outside / "secret") == LABEL
        os.setxattr(outside / "secret", ATTRIBUTE, b"before")
        status = outside.stat()
        system = {(status.st_dev, status.st_ino): "/outside"}
        with pytest.raises(InvalidArgument, match=r"a/b': it is /outside of the host"):
            walked(tree, Relabelling(os.fsencode(tree), LABEL, system))
        assert label(outside / "secret") == b"before"


def test_a_file_system_without_labels_is_left_as_it_is() -> None:
    entries, changed = walked(Path("/proc/sys/kernel/random"))
    assert (entries > 3, changed) == (True, 0)


@plain_attribute
def test_too_deep_a_tree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighter.shim.worker.relabel.MAX_DEPTH", 3)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="more than 3 directories"):
        walked(tmp_path)


def job(path: Path | str, label: str = "", **more: Any) -> dict[str, Any]:
    lists = {"system": ["/", "/etc", "/etc/passwd", "/nowhere"], "closed": ["/proc", "/sys"]}
    return run_job({"job": "relabel", "path": str(path), "label": label, **lists, **more})


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/etc/", "/etc/../etc", "/etc/passwd", "/proc/self", "/sys/fs"]
)
def test_directories_of_the_system_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"of the host|keeps its labels"):
        job(path)


def test_they_are_refused_by_any_other_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "mounted").mkdir()
    with pytest.raises(InvalidArgument, match="it is /etc of the host"):
        job(tmp_path / "link")
    (tmp_path / "file").touch()
    with bound("/etc", tmp_path / "mounted"), bound("/etc/passwd", tmp_path / "file"):
        for name, wanted in (("mounted", ""), ("mounted", "u:r:t:s0"), ("file", "u:r:t:s0")):
            with pytest.raises(InvalidArgument, match=r"it is /etc.* of the host"):
                job(tmp_path / name, wanted)
    (tmp_path / "closed").mkdir()
    (tmp_path / "to-closed").symlink_to("closed")
    for path in ("closed", "to-closed"):
        with pytest.raises(InvalidArgument, match="keeps its labels"):
            job(tmp_path / path, closed=[str(tmp_path / "to-closed")])
    assert job(tmp_path) == {"entries": 0, "changed": 0}
    with pytest.raises(NotFound):
        job(tmp_path / "nowhere")
    with pytest.raises(InvalidArgument, match="no absolute path"):
        job("relative")


@plain_attribute
def test_the_worker_finds_the_tree_behind_its_lock(tree: Path) -> None:
    """Where SELinux is not built in, this takes CAP_SYS_ADMIN, which it has given up by then."""
    (tree / "link").symlink_to("a")
    try:
        assert job(tree / "link", LABEL.decode()) == {"entries": 6, "changed": 6}
    except PermissionDenied as err:
        assert err.message.startswith(f"relabel '{tree}/link': ")
    else:
        assert label(tree / "a" / "b" / "file") == LABEL
    assert (label(tree), label(tree / "link"), label(tree.parent / "outside")) == (b"", b"", b"")


@plain_attribute
@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_what_is_no_directory_is_relabelled_alone(tree: Path, kind: str) -> None:
    assert job(tree / kind, LABEL.decode()) == {"entries": 1, "changed": 1}
    assert (label(tree / kind), label(tree)) == (LABEL, b"")
    (tree / "link").symlink_to(kind)
    assert job(tree / "link", LABEL.decode()) == {"entries": 1, "changed": 0}
