"""The directory of a task: what becomes of it when the host lacks something."""

import os
import resource
from pathlib import Path

import pytest

from lighter.daemon.tasks.bundle import Bundle
from lighter.proto.errors import Unavailable
from lighter.proto.paths import Root, State


def test_one_that_cannot_be_removed_says_so_and_is_removed_later(tmp_path: Path) -> None:
    bundle = Bundle(State(str(tmp_path / "state")), Root(str(tmp_path / "root")), "ns", "c")
    os.makedirs(bundle.rootfs)
    Path(bundle.dir, "config.json").write_text("{}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(Unavailable, match=r"remove bundle .*: Too many open files"):
            bundle.remove()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert bundle.exists()
    bundle.remove()
    assert not bundle.exists()
    bundle.remove()
