"""F52: a file system turns read-only while the manager uses it, or is so when it starts."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto import errors
from tests import lives
from tests.harness import Lighterd, await_that, settled
from tests.lives import NO_STDIO, ask, process_state


class Disk:
    """An ext4 at a directory, which an error makes read-only as it does on a failing disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory.with_name(directory.name + ".disk")
        with self._file.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", self._file], check=True)
        directory.mkdir(mode=0o700)
        self._mount()

    def break_down(self) -> None:
        """Newer kernels do not show it in the mount's flags: only writing tells."""
        subprocess.run(["sync", "-f", self.directory], check=True)  # it is no power cut
        (self._shown() / "trigger_fs_error").write_text("by a test")
        with pytest.raises(OSError) as refused:
            os.close(os.open(self.directory, os.O_TMPFILE | os.O_RDWR))
        assert refused.value.errno == errno.EROFS

    def mend(self) -> None:
        shown = self._shown()
        subprocess.run(["umount", self.directory], check=True)
        # A mount namespace that something else of this host has just made may still have it.
        await_that(lambda: not shown.exists(), 60, "nobody has it mounted")
        done = subprocess.run(["e2fsck", "-fy", self._file], capture_output=True)
        assert done.returncode in (0, 1), done
        self._mount()

    def _shown(self) -> Path:
        device = os.stat(self.directory).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        return Path(f"/sys/fs/ext4/{name}")

    def _mount(self) -> None:
        argv = ["mount", "-o", "loop,errors=remount-ro", self._file, self.directory]
        subprocess.run(argv, check=True)


@pytest.fixture
def disk(make_lighterd: Callable[..., Lighterd]) -> Iterator[tuple[Lighterd, Disk]]:
    """An instance that has not been started, and the disk that its root is on."""
    lighterd = make_lighterd()
    disk = Disk(lighterd.root)
    try:
        yield lighterd, disk
    finally:
        if lighterd.process is not None and lighterd.process.poll() is None:
            lighterd.stop()
        subprocess.run(["umount", "-l", lighterd.root], check=True)


def does_not_start(lighterd: Lighterd, reason: str) -> None:
    with pytest.raises(AssertionError, match="lighterd ended with 1"):
        lighterd.start()
    assert lighterd.log_end().splitlines()[-1] == f"lighterd: {reason}"


def test_f52_the_root_turns_read_only(disk: tuple[Lighterd, Disk]) -> None:
    lighterd, file_system = disk
    image = lighterd.start().import_busybox()
    killed = lives.begin(lighterd, image, "killed", "sleep", "1000")
    running = lives.begin(lighterd, image, "running", "sleep", "1000")
    file_system.break_down()

    # What only reads works, and so do signals; their exits are told once they can be written down.
    assert [row["id"] for row in ask(lighterd, "tasks.list")["tasks"]] == ["killed", "running"]
    assert len(ask(lighterd, "images.list", cursor="", limit=9, filters=[])["images"]) == 1
    ask(lighterd, "tasks.kill", id="killed", exec_id="", signal=signal.SIGKILL, all=False)
    await_that(lambda: process_state(killed) in ("", "Z"), 10, "the container is killed")
    for call, body in {
        "containers.create": {"id": "new", "image": image, "args": ["true"]},
        "images.tag": {"source": image, "name": "docker.io/library/other:1", "force": False},
        "namespaces.create": {"name": "other", "labels": {}},
        "tasks.exec": {"id": "running", "exec_id": "x", "args": ["true"], **NO_STDIO},
    }.items():
        with pytest.raises(errors.FailedPrecondition) as refused:
            ask(lighterd, call, **body)
        assert "ead-only" in refused.value.message and str(lighterd.root) in refused.value.message

    # A start is refused in words; the container that runs is nobody's business.
    lighterd.stop()
    does_not_start(lighterd, f"lock {lighterd.root}/lock: Read-only file system")
    assert process_state(running) == "S"

    # It ends while nobody looks: the mended disk gets both exits.
    os.kill(running, signal.SIGKILL)
    rootfs = f"{lighterd.state}/tasks/"
    await_that(
        lambda: rootfs not in Path("/proc/self/mountinfo").read_text(), 20, "both are unmounted"
    )
    file_system.mend()
    lighterd.start()
    for name in ("killed", "running"):
        assert lives.await_task(lighterd, name, "stopped")["exit_status"] == 137
        ask(lighterd, "containers.delete", id=name, force=True)
    assert not (wrong := lives.check_history(lives.history(lighterd))), wrong
    settled(
        lambda: [
            *lighterd.left_on_disk(),
            *(f"shim {pid}" for pid in lighterd.shims()),
        ]
    )


def test_f52_the_state_directory_turns_read_only(make_lighterd: Callable[..., Lighterd]) -> None:
    """What runs there is listed and ends, and its exit is told; what needs files is refused."""
    lighterd = make_lighterd()
    file_system = Disk(lighterd.state)
    try:
        image = lighterd.start().import_busybox()
        lives.begin(lighterd, image, "running", "sleep", "1000")
        lives.define(lighterd, image, "defined", "true")
        file_system.break_down()

        def refused(call: str, **body: object) -> None:
            with pytest.raises(errors.FailedPrecondition) as error:
                ask(lighterd, call, **body)
            assert f"on {lighterd.state}" in error.value.message

        assert lives.task(lighterd, "running")["status"] == "running"
        refused("tasks.create", id="defined", **NO_STDIO)
        refused("tasks.exec", id="running", exec_id="x", args=["true"], **NO_STDIO)
        ask(lighterd, "tasks.kill", id="running", exec_id="", signal=signal.SIGKILL, all=False)
        assert ask(lighterd, "tasks.wait", id="running", exec_id="")["exit_status"] == 137
        refused("tasks.delete", id="running", exec_id="", force=True)
        refused("containers.delete", id="running", force=True)
        lighterd.stop()
        file_system.mend()
        lighterd.start()
        assert lives.await_task(lighterd, "running", "stopped")["exit_status"] == 137
        ask(lighterd, "tasks.create", id="defined", **NO_STDIO)
        for name in ("running", "defined"):
            ask(lighterd, "containers.delete", id=name, force=True)
        await_that(lambda: not lighterd.shims(), 30, "no shim is left")
        assert not (wrong := lives.check_history(lives.history(lighterd))), wrong
    finally:
        if lighterd.process is not None and lighterd.process.poll() is None:
            lighterd.stop()
        subprocess.run(["umount", "-l", lighterd.state], check=True)


def test_f52_a_state_directory_that_is_read_only_ends_the_start(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd()
    lighterd.state.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "lighter-test", lighterd.state]
    subprocess.run(argv, check=True)
    try:
        does_not_start(lighterd, f"lock {lighterd.state}/lock: Read-only file system")
    finally:
        subprocess.run(["umount", lighterd.state], check=True)
