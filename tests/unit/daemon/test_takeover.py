"""Which spawner a manager would start, as a digest: what it says apart, and that it is the same."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from lighter import proto
from lighter.daemon.spawning import takeover
from lighter.daemon.spawning.takeover import ask_waiting, kind_of
from tests.processes import own_descriptors


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a spawner loads of ours."""
    here = Path(proto.__file__).parent.parent
    for part in ("proto", "shim"):
        shutil.copytree(here / part, tmp_path / "lighter" / part)
    monkeypatch.setattr(proto, "__file__", str(tmp_path / "lighter/proto/__init__.py"))
    return tmp_path / "lighter"


def test_it_is_the_same_each_time_and_says_apart_what_it_is_made_from(package: Path) -> None:
    assert len(kind_of("a")) == 64
    assert kind_of("a") == kind_of("a") != kind_of("b")


@pytest.mark.parametrize("how", ["changed", "replaced", "added", "removed"])
@pytest.mark.parametrize("name", ["proto/codec.py", "shim/spawner.py", "shim/worker/main.py"])
def test_another_build_is_of_another_kind(package: Path, name: str, how: str) -> None:
    before, file = kind_of(""), package / name
    status = file.stat()
    if how == "changed":
        file.write_bytes(file.read_bytes() + b"\n")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "replaced":
        shutil.copy2(file, package / "new")
        (package / "new").rename(file)
    elif how == "added":
        (file.parent / "new.py").touch()
    else:
        file.unlink()
    assert kind_of("") != before


def test_what_is_compiled_meanwhile_changes_nothing(package: Path) -> None:
    before = kind_of("")
    (package / "shim/__pycache__").mkdir(exist_ok=True)
    (package / "shim/__pycache__/x.pyc").touch()
    assert kind_of("") == before


def test_rights_and_namespaces_are_told(package: Path) -> None:
    before = kind_of("")
    limits = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(limits)})
    try:
        assert len(limits) == 1 or kind_of("") != before
    finally:
        os.sched_setaffinity(0, limits)
    assert kind_of("") == before


def test_the_oom_score_that_shims_inherit_is_told(package: Path) -> None:
    score = Path("/proc/self/oom_score_adj")
    before, own = kind_of(""), score.read_text()
    score.write_text(str(int(own) + (1 if int(own) < 1000 else -1)))
    try:
        assert kind_of("") != before
    finally:
        score.write_text(own)
    assert kind_of("") == before


def test_what_cannot_be_told_is_no_kind(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover.sys, "executable", "/no/such/python")
    assert kind_of("") == ""


@pytest.mark.parametrize("there", ["nothing", "a file", "a socket of nobody"])
def test_where_nobody_waits_there_is_none(tmp_path: Path, there: str) -> None:
    path = tmp_path / "next.sock"
    if there == "a file":
        path.touch()
    elif there != "nothing":
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.bind(str(path))
    before = own_descriptors()
    assert ask_waiting(str(path), "0" * 64) is None
    assert own_descriptors() <= before
    assert not path.exists()
