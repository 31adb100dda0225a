"""Job `place`: where a path of a snapshot leads."""

import os
from pathlib import Path

import pytest

from lighter.proto.errors import LighterError
from tests.unit.worker.harness import run_job

pytestmark = pytest.mark.root


def place(root: Path, path: str) -> str:
    mounts = [["bind", str(root), ["rbind", "rw"]]]
    return os.fsdecode(
        run_job({"job": "place", "path": os.fsencode(path), "mounts": mounts})["place"]
    )


@pytest.mark.parametrize(
    ("path", "leads"),
    [
        ("/", "/"),
        ("/plain/new", "/plain/new"),
        ("/x", "/dev"),
        ("/x/shm", "/dev/shm"),
        ("/plain/up", "/dev/null"),
        ("/host", "/tmp/outside"),
        ("/missing", "/dev"),
        ("/turn", "/deep/dev"),
    ],
)
def test_sec_57_links_are_followed_inside_the_root(tmp_path: Path, path: str, leads: str) -> None:
    for name in ("plain", "deep/er"):
        (tmp_path / name).mkdir(parents=True)
    for name, target in (
        ("x", "dev/"),
        ("plain/up", "../../../x/null"),
        ("host", "/tmp/outside"),
        ("missing", "none/../x"),
        ("down", "deep/er"),
        ("turn", "/down/../dev"),
    ):
        (tmp_path / name).symlink_to(target)
    assert place(tmp_path, path) == leads


def test_sec_57_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    # Twice 3000 bytes, where no name is looked up any more, and the link out of there.
    names, fd = ["d" * 250] * 12, os.open(tmp_path, os.O_RDONLY)
    for name in names * 2:
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.symlink("/dev", "out", dir_fd=fd)
    os.close(fd)
    (tmp_path / "first").symlink_to("/".join(names))
    (tmp_path / "far").symlink_to("first/" + "/".join(names) + "/out")
    for path in ("/loop/x", "/far"):
        with pytest.raises(LighterError) as caught:
            place(tmp_path, path)
        assert path in caught.value.message
