"""Files on their way to the manager and from it: what one half of a copy meets, ctl must tell."""

import contextlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lighter.ctl.handing import emptied_pipe, filled_pipe
from lighter.ctl.untar import Untar
from lighter.proto.errors import FailedPrecondition, Internal, NotFound
from tests.fakes.manager import Ask, FakeManager
from tests.unit.ctl.conftest import PATIENCE_S, Ctl, Start


@pytest.mark.parametrize("mtime", ["1e30", "-1e30", "inf", "nan"])
def test_a_time_that_is_none_keeps_no_file_away(tmp_path: Path, mtime: str) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("first", "second"):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 4, {"mtime": mtime}
            tar.addfile(member, io.BytesIO(b"data"))
    with contextlib.ExitStack() as undo:
        root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, root)
        untar = Untar(root, owner=False, complain=pytest.fail)
        handed = emptied_pipe(undo, untar.run)
        with open(handed.path, "wb") as pipe:
            pipe.write(data.getvalue())
        handed.complete()
    assert [(tmp_path / name).read_bytes() for name in ("first", "second")] == [b"data"] * 2


@pytest.mark.parametrize(
    ("met", "words"),
    [(OverflowError("timestamp"), "OverflowError: timestamp"), (RecursionError("x"), "too deep")],
)
def test_whatever_a_half_meets_is_told(met: Exception, words: str) -> None:
    def work(_fd: int) -> None:
        raise met

    with contextlib.ExitStack() as undo:
        taking = emptied_pipe(undo, work)
        with pytest.raises(Internal, match=words):
            taking.complete()
    with contextlib.ExitStack() as undo:
        giving = filled_pipe(undo, work)
        with open(giving.path, "rb") as pipe:
            assert pipe.read() == b""
        with pytest.raises(Internal, match=words):
            giving.check()


def test_standard_input_is_taken_from_where_it_is(
    manager: FakeManager, ctl: Ctl, tmp_path: Path
) -> None:
    """As `{ dd …; ctl images import -; } <file` leaves it."""
    (tmp_path / "bundle").write_bytes(b"head" * 1024 + b"archive")
    took: list[bytes] = []

    def import_(ask: Ask) -> Any:
        with open(ask.body["source"], "rb") as file:
            took.append(file.read())
        return {"images": []}

    manager.on("images.import", import_)
    for offset in (4096, 0):
        with open(tmp_path / "bundle", "rb", buffering=0) as file:
            file.seek(offset)
            assert ctl("images", "import", "-", stdin=file).returncode == 0
    assert took == [b"archive", b"head" * 1024 + b"archive"]


@pytest.mark.parametrize(
    ("error", "copied"),
    [
        (NotFound("look at /new in web: nothing is there", missing="path"), True),
        (NotFound("find /new in web: there is no such file"), True),
        (NotFound("get container web: there is none; try to find it elsewhere"), False),
    ],
    ids=["a path", "a path by a manager of the release before", "the container"],
)
def test_what_is_missing_is_told_by_the_errors_details(
    manager: FakeManager, ctl: Ctl, tmp_path: Path, error: NotFound, copied: bool
) -> None:
    (tmp_path / "file").write_text("x")
    took: list[bytes] = []

    def extract(ask: Ask) -> Any:
        with open(ask.body["source"], "rb") as file:
            took.append(file.read())
        return {}

    above = {"mode": stat.S_IFDIR, "target_mode": stat.S_IFDIR, "link": b""}
    manager.on("files.look", lambda ask: error if ask.body["path"] == b"/new" else above)
    manager.on("files.extract", extract)
    manager.on("containers.resolve", NotFound("find container web: there is none"))
    done = ctl("cp", str(tmp_path / "file"), "web:/new")
    assert (done.returncode == 0, bool(took)) == (copied, copied), done.stderr


@pytest.mark.parametrize(
    "words", ["diff web", "export web", "cp web:/etc -", "images export - busybox"]
)
def test_who_reads_no_more_ends_what_is_written(
    manager: FakeManager, start: Start, words: str
) -> None:
    """As `ctl export web | head -1`, with more than any pipe holds."""

    def write(ask: Ask) -> Any:
        with open(ask.body["target"], "wb", buffering=0) as pipe:
            try:
                while True:
                    pipe.write(b"C/etc/hosts\0" * 1000)
            except BrokenPipeError:
                return FailedPrecondition("write archive: Broken pipe")

    for method in ("files.changes", "files.export", "files.pack", "images.export"):
        manager.on(method, write)
    manager.on("files.look", {"mode": stat.S_IFDIR, "target_mode": stat.S_IFDIR, "link": b""})
    ctl = start(*words.split())
    assert ctl.stdout and ctl.stdout.read(1)
    ctl.stdout.close()
    assert ctl.wait(PATIENCE_S) == 141
    assert ctl.stderr and ctl.stderr.read() == b""
