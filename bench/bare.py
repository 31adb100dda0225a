"""A life and an exec by the runtime alone, from a bare loop: what no manager of it can go below.

What is not the runtime in it is one mkdir, one mount and one file for a life. Nothing is flushed,
nobody is told, and a loop that died would leave everything behind.
"""

import copy
import json
import os
import select
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from limit import Limit
from measure import CommandFailed

from lighter.shim import linux  # type: ignore[import-untyped]

_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath)}
_DEVNULL = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
_ENDS_MS = 10_000

Step = Callable[[str, Callable[[], object]], None]

_numbers = count(1)


def _untold(_step: str, work: Callable[[], object]) -> None:
    work()


class BareLoop:
    """Lives of one config.json. Several threads may use it at a time."""

    def __init__(self, limit: Limit, spec: dict[str, Any]) -> None:
        """`spec`: its rootfs is `rootfs` in the bundle, its program ends at once."""
        self.name = limit.name
        self._limit = limit
        self._spec = spec
        self._base = limit.base / "lives"

    def close(self) -> None:
        shutil.rmtree(self._base, ignore_errors=True)

    def life(self, step: Step = _untold) -> None:
        """create, start, exit, delete; `step` is called with the name of each and its work."""
        name = f"bare{next(_numbers)}"
        bundle = self._base / name
        step("container made", lambda: self._make(bundle, self._spec))
        pid_file = bundle / "pid"
        words = ("create", "--bundle", str(bundle), "--pid-file", str(pid_file), name)
        step("task created", lambda: self._runtime(*words))
        pidfd = os.pidfd_open(int(pid_file.read_text()))
        try:
            step("started", lambda: self._runtime("start", name))
            step("exit seen", lambda: _wait(pidfd))
        finally:
            os.close(pidfd)
        step("deleted", lambda: self._runtime("delete", "--force", name))
        step("removed", lambda: _remove(bundle))

    @contextmanager
    def running(self, args: list[str]) -> Iterator[str]:
        """The name of a container of `args`, killed and removed at the end."""
        name = f"bare{next(_numbers)}"
        bundle = self._base / name
        self._make(bundle, {**self._spec, "process": {**self._spec["process"], "args": args}})
        try:
            self._runtime("run", "--detach", "--bundle", str(bundle), name)
            try:
                yield name
            finally:
                self._runtime("delete", "--force", name)
        finally:
            _remove(bundle)

    def exec(self, container: str) -> None:
        """One of the spec's program, until it has ended."""
        place = self._base / f"exec{next(_numbers)}"
        process, pid_file = place / "process.json", place / "pid"
        place.mkdir()
        process.write_text(json.dumps(self._spec["process"]))
        words = ("--detach", "--process", str(process), "--pid-file", str(pid_file), container)
        self._runtime("exec", *words)
        try:
            pidfd = os.pidfd_open(int(pid_file.read_text()))
        except ProcessLookupError:  # it has ended, and whose child it was has seen that
            pass
        else:
            try:
                _wait(pidfd)
            finally:
                os.close(pidfd)
        shutil.rmtree(place)

    def _make(self, bundle: Path, spec: dict[str, Any]) -> None:
        for part in ("rootfs", "upper", "work"):
            (bundle / part).mkdir(parents=True)
        spec = copy.copy(spec)
        spec["linux"] = {
            **spec["linux"],
            "cgroupsPath": f"/{self._limit.base.name}-{bundle.name}",
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        lower = f"{self._limit.base}/rootfs"
        data = f"lowerdir={lower},upperdir={bundle}/upper,workdir={bundle}/work"
        linux.mount("overlay", str(bundle / "rootfs"), "overlay", 0, data)

    def _runtime(self, *words: str) -> None:
        argv = [self._limit.binary, "--root", f"{self._limit.base}/state", *words]
        pid = os.posix_spawn(self._limit.binary, argv, _ENVIRONMENT, file_actions=_DEVNULL)
        _pid, status = os.waitpid(pid, 0)
        if status:
            raise CommandFailed(f"{' '.join(argv)}: status {status}")


def _remove(bundle: Path) -> None:
    linux.umount(str(bundle / "rootfs"))
    shutil.rmtree(bundle)


def _wait(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_ENDS_MS):
        raise CommandFailed("a container's `true` did not end")
