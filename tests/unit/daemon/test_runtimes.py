"""daemon/tasks/runtimes: names, absolute paths, and which files are trusted to run as root."""

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.daemon.tasks.runtimes import NAMES, Runtimes
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of root's own")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "runc"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_the_configured_program(program: Path, name: str) -> None:
    assert Runtimes({NAMES[name]: str(program)}).find(name) == str(program)


def test_an_absolute_path_stands_for_itself_and_links_are_resolved(program: Path) -> None:
    link = program.parent / "link"
    link.symlink_to(program)
    assert Runtimes({}).find(str(link)) == str(program)


def test_a_configured_word_is_looked_up_in_path(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert Runtimes({"runc": "runc"}).find("runc") == str(program)


def test_where_there_is_no_runc_crun_stands_for_it(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    crun = program.parent / "crun"
    crun.write_text("#!/bin/sh\n")
    crun.chmod(0o755)
    configured = {"runc": "runc", "crun": "crun"}
    assert Runtimes(configured).find("io.containerd.runc.v2") == str(program)
    program.unlink()
    assert Runtimes(configured).find("io.containerd.runc.v2") == str(crun)
    crun.unlink()
    with pytest.raises(NotFound, match="find runtime runc: no such program"):
        Runtimes(configured).find("io.containerd.runc.v2")


@pytest.mark.parametrize(
    "name", ["sh", "foo", "", "io.containerd.../..", "../runc", "io.containerd.kata.v2", "runc\n"]
)
def test_sec_72_other_names_are_refused(program: Path, name: str) -> None:
    with pytest.raises(InvalidArgument):
        Runtimes({"runc": str(program)}).find(name)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.unlink(), NotFound),
        (lambda path: path.chmod(0o644), FailedPrecondition),
        (lambda path: path.chmod(0o775), FailedPrecondition),
        (lambda path: path.chmod(0o757), FailedPrecondition),
        (lambda path: os.chown(path, 65534, 0), FailedPrecondition),
        (lambda path: (path.unlink(), path.mkdir()), NotFound),
    ],
    ids=["missing", "not executable", "group writes", "others write", "not root's", "directory"],
)
def test_sec_59_a_file_that_cannot_be_trusted_is_refused(
    program: Path, spoil: Callable[[Path], object], error: type[LighterError]
) -> None:
    spoil(program)
    with pytest.raises(error, match=f"find runtime {program}: "):
        Runtimes({}).find(str(program))


def test_f73_a_link_that_leads_to_no_path_is_no_program() -> None:
    """A link in /proc to what has no name: it is there for one call, and is not for the next."""
    with select.epoll() as nameless:
        path = f"/proc/self/fd/{nameless.fileno()}"
        with pytest.raises(NotFound, match=f"^find runtime {path}: "):
            Runtimes({}).find(path)


def test_a_program_that_moves_within_path_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a" / "runc", tmp_path / "b" / "runc"
    monkeypatch.setenv("PATH", f"{first.parent}:{second.parent}")
    for place in (first, second):
        place.parent.mkdir()
    runtimes = Runtimes({"runc": "runc"})
    for here, gone in ((second, first), (first, second)):
        gone.unlink(missing_ok=True)
        here.write_text("#!/bin/sh\n")
        here.chmod(0o755)
        assert runtimes.find("runc") == str(here)
    first.unlink()
    with pytest.raises(NotFound):
        runtimes.find("runc")
