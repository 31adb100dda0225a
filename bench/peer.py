"""A program under measurement: a private instance with its own directories, and its end.

Leaving it ends what it has started, whatever happened meanwhile: containers, monitors, mounts,
cgroups.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from measure import CommandFailed, found, mounts_below, run, titles, together, undisturbed, until

REFERENCE = "docker.io/library/busybox:test"
START_S = 120
_POLL_S = 60  # who takes longer to answer does not answer
_MONITORS_S = 10
RUNC = "runc"
_AT_ONCE = 25  # containers that one command deletes
_CGROUPS = Path("/sys/fs/cgroup")


class Peer(ABC):
    """A running manager and how its command line is asked. Leaving the context removes it all."""

    name: str
    api_address: str  # where containerd's API is served

    def __init__(self, parent_dir: str = "/tmp", runtime: str = RUNC) -> None:
        self.runtime = runtime
        self.base = Path(tempfile.mkdtemp(prefix="lighter-bench-", dir=parent_dir))
        # Of its own, since the namespace is a cgroup that is looked for afterwards.
        # What mkdtemp makes may hold two underscores in a row, which no namespace has.
        self.namespace = f"bench-{sha256(self.base.name.encode()).hexdigest()[:8]}"
        self.manager: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Peer":
        try:
            self.start()
            self.import_image()
        except BaseException:
            with undisturbed():
                self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            self._close()

    # -- what each peer says in its own words

    @abstractmethod
    def client(self, *words: str) -> list[str]:
        """argv of its command line, addressed to this instance."""

    @abstractmethod
    def run_options(self) -> list[str]:
        """What `run` must be told for the settings to be equal."""

    @abstractmethod
    def import_image(self) -> None: ...

    @abstractmethod
    def version_text(self) -> str:
        """The program's version, for the report."""

    @abstractmethod
    def monitors(self) -> list[int]:
        """Pids of the processes that stay with the containers."""

    @abstractmethod
    def _manager_argv(self) -> list[str]: ...

    @abstractmethod
    def _cgroup_tops(self) -> list[str]:
        """Cgroups, below each hierarchy's root, that hold this instance's containers."""

    # -- commands to be timed

    def run_argv(self, container: str, *command: str) -> list[str]:
        return self.client("run", "--rm", *self.run_options(), REFERENCE, container, *command)

    def detach_argv(self, container: str) -> list[str]:
        return self.client(
            "run", "-d", *self.run_options(), REFERENCE, container, "sleep", "100000"
        )

    def exec_argv(self, container: str, exec_id: str) -> list[str]:
        return self.client("tasks", "exec", "--exec-id", exec_id, container, "true")

    def list_argv(self) -> list[str]:
        return self.client("tasks", "ls")

    def version_argv(self) -> list[str]:
        return self.client("version")

    # -- the rest

    def running(self) -> int:
        """How many tasks its list shows as running; 0 while it does not answer."""
        done = asked(self.list_argv())
        return done.stdout.count("RUNNING") if done.returncode == 0 else 0

    def monitors_of(self, size: int) -> list[int]:
        """Those of `size` containers. Raises CommandFailed when it has more or less of them."""
        pids: list[int] = []

        def are_all() -> bool:
            pids[:] = self.monitors()
            return len(pids) == size

        try:
            until(are_all, _MONITORS_S, "as many monitors as containers")
        except CommandFailed as error:
            has = f"{self.name} has {len(pids)} monitors of {size} containers"
            raise CommandFailed(f"{has}: {error}") from error
        return pids

    def remove(self, containers: Iterable[str]) -> None:
        """Kill and delete, four commands at a time."""
        names = list(containers)
        some = [names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE)]
        together(4, (self.client("tasks", "delete", "--force", *these) for these in some))
        together(4, (self.client("containers", "delete", *these) for these in some))

    def launch(self) -> None:
        """Start the manager's process and do not wait for it."""
        with (self.base / "log").open("ab") as log:
            self.manager = subprocess.Popen(
                self._manager_argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )

    def start(self) -> None:
        """Start the manager; returns when it answers. Raises CommandFailed with what it said."""
        said = ""

        def answers() -> bool:
            nonlocal said
            assert self.manager is not None
            if self.manager.poll() is not None:
                raise RuntimeError(f"start {self.name}: it ended\n{self.log_end()}")
            done = asked(self.list_argv())
            said = done.stderr.strip()
            return done.returncode == 0

        self.launch()
        try:
            until(answers, START_S, f"{self.name} answers")
        except CommandFailed as error:
            raise CommandFailed(f"{error}: {said}") from error

    def kill9(self) -> None:
        assert self.manager is not None
        self.manager.kill()
        self.manager.wait()

    def log_end(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-3000:]

    def _close(self) -> None:
        """Whatever happened: end the containers, the manager, its monitors, mounts and cgroups."""
        if self.manager is not None and self.manager.poll() is None:
            with contextlib.suppress(Exception):
                self.remove(self._listed())
            self.manager.terminate()
            try:
                self.manager.wait(20)
            except subprocess.TimeoutExpired:
                self.kill9()
        for pid in (*self._cgroup_pids(), *self._marked()):
            _end(pid)
        for point in mounts_below(self.base):
            subprocess.run(["umount", "-l", point], check=False)
        self._remove_cgroups()
        shutil.rmtree(self.base, ignore_errors=True)

    def _listed(self) -> list[str]:
        return run(self.client("containers", "ls", "-q")).split()

    def _marked(self) -> list[int]:
        """Processes with this instance's directory or mark in their command line."""
        mine = os.getpid()
        return [
            pid
            for pid, title in titles().items()
            if pid != mine and any(mark in title for mark in self._marks())
        ]

    def _marks(self) -> list[str]:
        return [str(self.base)]

    def _cgroup_dirs(self) -> list[Path]:
        hierarchies = (_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir()))
        tops = (top for hierarchy in hierarchies for top in self._cgroup_tops_of(hierarchy))
        return [Path(path) for top in tops for path, _, _ in os.walk(top)]

    def _cgroup_tops_of(self, hierarchy: Path) -> list[Path]:
        return [hierarchy / top for top in self._cgroup_tops()]

    def _cgroup_pids(self) -> list[int]:
        pids: list[int] = []
        for folder in self._cgroup_dirs():
            with contextlib.suppress(OSError):
                pids += map(int, (folder / "cgroup.procs").read_text().split())
        return pids

    def _remove_cgroups(self) -> None:
        for folder in sorted(self._cgroup_dirs(), key=lambda path: -len(str(path))):
            with contextlib.suppress(OSError):
                folder.rmdir()


def image_archive() -> str:
    maker = Path(__file__).resolve().parent.parent / "tests" / "images.py"
    return run([sys.executable, str(maker)]).strip()


def asked(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """A command to its end; one that takes too long failed."""
    argv = found(argv)
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=_POLL_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"no answer within {_POLL_S} s")


def _end(pid: int) -> None:
    """SIGKILL by pidfd, and wait for the end."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 10)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
