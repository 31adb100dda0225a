"""A real lighterd of a test's own: its directories, its processes, its end.

Everything it makes carries its instance's mark, so what is left over is found by tests/census.py
and nothing of a neighbour is ever touched. `close` removes all containers through the manager,
then looks at what is left: leftovers are cleaned away so that the next test starts from nothing,
and raised as a failure.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lighter.proto import errors
from lighter.proto.paths import Root, State
from tests import census, cgroups, held, images
from tests.client import Client
from tests.processes import with_title
from tests.storecheck import store_problems, unfinished

BIN = Path(sys.executable).parent
START_S = 60.0
STOP_S = 60.0
_POLL_S = 0.02


def importing(client: Client, fd: int, timeout_s: float) -> Any:
    """The stream of an import of an archive that is read from a descriptor of this process."""
    return client.stream(
        "images",
        "import",
        timeout_s=timeout_s,
        source=f"/proc/{os.getpid()}/fd/{fd}",
        base_name="",
        index_name="",
        digests=False,
        all_platforms=False,
        unpack=True,
        snapshotter="",
    )


class Lighterd:
    """One instance. `root`, `state`, `instance` name it; `log` is what the manager wrote."""

    def __init__(
        self,
        owners: census.Owners,
        *,
        config: str = "",
        log_level: str = "debug",
        under: str = "/tmp",
    ) -> None:
        # Not pytest's tmp_path: a socket's path has at most 107 bytes.
        self.base = Path(tempfile.mkdtemp(prefix="lighter-", dir=under))
        self.root = self.base / "r"
        self.state = self.base / "s"
        self.log = self.base / "log"
        self.instance = Root(str(self.root)).instance
        self.address = State(str(self.state)).client_socket
        self.grpc_address = State(str(self.state)).grpc_socket
        self.owners = owners
        owners.instances.add(self.instance)
        owners.dirs.add(str(self.base))
        self.process: subprocess.Popen[bytes] | None = None
        self.first_event = 0  # events up to this one are of tests before (see `clear`)
        self.cgroups: set[str] = set()  # where its clients put containers (census.Owners)
        # A test leaves content half-written on purpose, for whoever goes on with it.
        self.resumes = False
        self._was_ready = False
        self.bin = BIN
        self.prefix: list[str] = []  # a program that executes the manager
        self._argv = [
            *(str(BIN / "lighterd"), "--root", str(self.root), "--state", str(self.state)),
            *("--log-level", log_level),
        ]
        if config:
            path = self.base / "config.toml"
            path.write_text(config)
            self._argv += ["--config", str(path)]

    # -- the manager's process

    @property
    def pid(self) -> int:
        assert self.process is not None, "lighterd was not started"
        return self.process.pid

    def start(self, **environ: str) -> "Lighterd":
        """Start and wait for READY=1; `environ` is added to the environment (FAULT, FAULT_TRACE).

        Raises AssertionError with the log's end when it ends first or takes over START_S.
        """
        self.launch(**environ)
        self.wait_ready()
        return self

    def use(self, programs: Path) -> None:
        """From its next start on, and for ctl at once: another release's programs."""
        self.bin = programs
        self._argv[0] = str(programs / "lighterd")

    def launch(self, **environ: str) -> None:
        """Start without waiting, for a test that expects it not to come up."""
        assert self.process is None or self.process.poll() is not None, "lighterd runs already"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        path = self.base / "notify"
        path.unlink(missing_ok=True)
        self._notify.bind(str(path))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self._argv],
                env={**os.environ, "NOTIFY_SOCKET": str(path), **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )

    def wait_ready(self) -> None:
        assert self.process is not None
        pidfd = os.pidfd_open(self.process.pid)
        end = time.monotonic() + START_S
        try:
            while True:
                left = max(0.0, end - time.monotonic())
                readable, _, _ = select.select([self._notify, pidfd], [], [], left)
                if self._notify in readable:
                    if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                        self._was_ready = True
                        return
                elif pidfd in readable:
                    code = self.process.wait()
                    raise AssertionError(f"lighterd ended with {code}\n{self.log_end()}")
                elif not readable:
                    raise AssertionError(f"lighterd is not ready in {START_S} s\n{self.log_end()}")
        finally:
            os.close(pidfd)
            self._notify.close()

    def log_end(self, size_bytes: int = 8000) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text[-size_bytes:]

    def kill9(self) -> None:
        """SIGKILL to the manager; returns when its spawner is gone: it sees its socket close."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._await_spawner()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"lighterd runs on after SIGTERM\n{self.log_end()}") from None
        self._await_spawner()
        return code

    def restart(self, **environ: str) -> "Lighterd":
        self.stop()
        return self.start(**environ)

    def _await_spawner(self) -> None:
        title = f"lighter-spawner --instance {self.instance}"
        await_that(lambda: not with_title(title), 30, "the spawner ends with its manager")

    # -- its clients

    def ctl(
        self,
        *args: str,
        input: bytes | None = None,  # noqa: A002 (subprocess.run's word)
        timeout: float = 30,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ctl with `args`; `check` turns a failure into an assertion with its stderr."""
        done = subprocess.run(
            self.ctl_argv(*args),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"ctl {' '.join(args)}: {done.stderr.decode()}"
        return done

    def ctl_argv(self, *args: str) -> list[str]:
        return [str(self.bin / "ctl"), "--address", self.address, *args]

    def client(self, namespace: str = "default") -> Client:
        return Client(self.address, namespace)

    def import_busybox(self, *, compressed: bool = False) -> str:
        """Import the test image; returns its name."""
        names = self.import_archive(images.busybox_archive(compressed=compressed))
        assert images.REFERENCE in names, names
        return images.REFERENCE

    def import_archive(self, path: Path) -> list[str]:
        """Import an image archive; returns the names of its images."""
        with self.client() as client, path.open("rb") as file:
            stream = importing(client, file.fileno(), 60)
            for _ in stream:
                pass
        found: list[str] = stream.result["images"]
        return found

    def events(self, namespace: str = "default") -> list[dict[str, Any]]:
        """Those of this test until now, in their order."""
        with self.client(namespace) as client:
            stream = client.stream("events", "subscribe", since=self.first_event, follow=False)
            return list(stream)

    def shims(self) -> list[int]:
        """Pids of this instance's shims, by title."""
        return with_title(f"lighter-shim --instance {self.instance}")

    # -- its end

    def close(self) -> None:
        """Remove all containers, stop, and look. Raises AssertionError with all that was left."""
        problems: list[str] = []
        for step in (
            self._remove_containers,
            lambda: settled(partial(self.left_on_disk, but_pulls=True)),
            lambda: settled(self._left_in_the_manager),
            self._stop_if_running,
            lambda: settled(self._left_in_the_kernel),
        ):
            try:
                step()
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
        log = self.log_end()
        self._clean_away()
        assert not problems, "\n".join([*problems, "--- the end of lighterd's log:", log])

    def clear(self) -> None:
        """Make the instance as good as new for the next test, but for its images.

        Raises AssertionError for what is left of containers.
        """
        self._remove_containers()
        settled(
            lambda: [
                *self.left_on_disk(but_pulls=True),
                *(f"shim {pid}" for pid in self.shims()),
                *self.left_of_containers(),
            ]
        )
        shutil.rmtree(self.base / "share", ignore_errors=True)
        if told := self.events(""):
            self.first_event = told[-1]["sequence"]

    def _remove_containers(self) -> None:
        """Through the manager, started once more when the test left it dead."""
        if not self._was_ready:
            return
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.cont()
        with self.client() as client:
            namespaces = client.call("namespaces", "list")["namespaces"]
            for namespace in [row["name"] for row in namespaces]:
                client.namespace = namespace
                cursor = ""
                while cursor is not None:
                    page = client.call("containers", "list", cursor=cursor, limit=500)
                    for row in page["containers"]:
                        # One that removes itself may be faster.
                        with contextlib.suppress(errors.NotFound):
                            client.call("containers", "delete", id=row["id"], force=True)
                    cursor = page["next"] or None

    def cont(self) -> None:
        """SIGCONT, for a test that stopped the manager."""
        os.kill(self.pid, signal.SIGCONT)

    def _stop_if_running(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def left_on_disk(self, *, but_pulls: bool = False) -> list[str]:
        """`but_pulls`: what a pull that has failed leaves for the next one is no leak."""
        return [
            *census.leftovers_on_disk(self.root, self.state),
            *store_problems(self.root),
            *([] if self.resumes else unfinished(self.root, but_pulls=but_pulls)),
        ]

    def left_of_containers(self) -> list[str]:
        """What the kernel, the manager and its spawner have of them when there are none."""
        owners = self.owners_of_this()
        places = (f"{self.state}/tasks/", f"{State(str(self.state)).short_sockets}/")
        return [
            *census.left_of_containers(owners),
            *(path for path in census.marked_sockets(owners) if path.startswith(places)),
            *self._left_in_the_manager(),
        ]

    def _left_in_the_manager(self) -> list[str]:
        if self.process is None or self.process.poll() is not None or self.bin != BIN:
            return []  # of another release nothing can be mended
        with self.client() as client:
            clients = client.call("system", "health")["clients"]
        return [
            *held.left_in_manager(self.owners_of_this(), self.pid, clients),
            *held.left_in_spawners(self.instance),
        ]

    def _left_in_the_kernel(self) -> list[str]:
        owners = self.owners_of_this()
        return [
            *census.marked_processes(owners),
            *census.marked_mounts(owners),
            *census.marked_cgroups(owners),
            *census.marked_sockets(owners),
            *census.marked_locks(owners),
        ]

    def owners_of_this(self) -> census.Owners:
        return census.Owners(
            {self.instance}, {str(self.base)}, exclusive=False, cgroups=self.cgroups
        )

    def _clean_away(self) -> None:
        """By force, and only what carries this instance's mark."""
        for path in census.marked_cgroups(self.owners_of_this()):
            cgroups.thaw(Path(path))  # on v1 what is frozen outlives a SIGKILL
        for process in census.processes(self.owners_of_this()):
            kill_by_pidfd(process.pid)
        for point in reversed(list(census.marked_mounts(self.owners_of_this()))):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        for path in sorted(census.marked_cgroups(self.owners_of_this()), key=len, reverse=True):
            await_that(lambda path=path: _rmdir(path), 30, f"{path} is empty")
        shutil.rmtree(self.base, ignore_errors=True)


def settled(look: Callable[[], list[str]]) -> None:
    """Look until nothing is left. Raises AssertionError with what is after the census' deadline."""
    end = time.monotonic() + census.DEADLINE_S
    while left := look():
        assert time.monotonic() < end, "\n".join(f"left: {thing}" for thing in left)
        time.sleep(_POLL_S)


def _rmdir(path: str) -> bool:
    """Whether the cgroup is gone; one with a process that is still dying is busy."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def kill_by_pidfd(pid: int) -> None:
    """SIGKILL to a process, and wait for its end through a pidfd."""
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


def await_that(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll until `condition()` is true. Raises AssertionError naming `what` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not true after {timeout_s} s: {what}"
        time.sleep(_POLL_S)
