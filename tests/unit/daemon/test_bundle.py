"""The directory of a task: what becomes of it when the host lacks something."""

import contextlib
import os
import resource
from pathlib import Path

import pytest

from lighter.daemon.tasks.bundle import Bundle
from lighter.proto.errors import NotFound, ResourceExhausted, Unavailable
from lighter.proto.paths import Root, State
from lighter.shim import linux


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


@pytest.mark.root
def test_f19_what_is_bound_below_the_root_stays_when_the_bundle_goes(tmp_path: Path) -> None:
    """Whoever has unmounted the root alone, lazily or by hand, has left this."""
    bundle = Bundle(State(str(tmp_path / "state")), Root(str(tmp_path / "root")), "ns", "c")
    point = Path(bundle.rootfs, "data")
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "kept").touch()
    point.mkdir(parents=True)
    linux.mount(str(volume), str(point), "", linux.MS_BIND)
    try:
        with pytest.raises(Unavailable) as refused:
            bundle.remove()
    finally:
        linux.umount(str(point))
    assert (volume / "kept").exists(), "it was deleted through the bundle"
    assert refused.value.message == f"remove {bundle.rootfs}: Directory not empty"
    point.rmdir()
    bundle.remove()
    assert not bundle.exists()


def test_f56_what_is_asked_of_a_task_whose_directory_is_gone_is_not_found(tmp_path: Path) -> None:
    bundle = Bundle(State(str(tmp_path / "state")), Root(str(tmp_path / "root")), "ns", "c")
    for write in (
        lambda: bundle.write_process("x", {}),
        lambda: bundle.write_added("x", {}),
        lambda: bundle.resources({}).__enter__(),
    ):
        with pytest.raises(NotFound, match=f"write {bundle.dir}/.*: the task's directory is not"):
            write()


@pytest.mark.root
def test_f49_a_full_state_directory_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    linux.mount("tmpfs", str(state), "tmpfs", data="size=64k")
    try:
        bundle = Bundle(State(str(state)), Root(str(tmp_path / "root")), "ns", "c")
        with pytest.raises(ResourceExhausted, match=f"make bundle {bundle.dir}: No space left"):
            bundle.write(b"x" * 100_000, "one", "")
        assert not bundle.exists()
        bundle.write(b"{}", "one", "")
        with (state / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096):
                pass
        for write in (
            lambda: bundle.write_process("x", {}),
            lambda: bundle.write_added("x", {}),
            lambda: bundle.write_runtime({}),
            lambda: bundle.resources({}).__enter__(),
        ):
            with pytest.raises(ResourceExhausted, match=f"write {bundle.dir}/.*: No space left"):
                write()
    finally:
        linux.umount(str(state))
