"""A machine whose first process is systemd: a Debian tree booted by systemd-nspawn.

    tree (read only) ── overlay ── <base>/root ── systemd-nspawn -b ── systemd, and what it starts
                        <base>/lib ── /var/lib (an overlay cannot hold containers' overlays)

It has its own network with nothing but a loopback device, its own pid namespace, so that nothing in
it outlives it, and its own cgroup in each hierarchy of the host. No D-Bus daemon runs in it, as on
a minimal host. The host need not be booted by systemd.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lighter.daemon.spawning.placement import hierarchies
from tests import census
from tests.harness import await_that

BOOT_S = 180.0
POWEROFF_S = 180.0
RUN_S = 180.0
_CGROUPS = "lighter-nspawn"
_ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
# Into its own cgroup everywhere, then the program: what it starts is born there.
_ENTER = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1"; shift; n=$((n-1)); done; exec "$@"'

Done = subprocess.CompletedProcess[str]


class Machine:
    """One machine, booted by `boot` and ended by `close`. `root` is its `/`, `lib` its /var/lib."""

    def __init__(self, tree: Path, owners: census.Owners) -> None:
        self.name = f"lighter-{secrets.token_hex(4)}"
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/tmp"))
        self.root = self.base / "root"
        self.lib = self.base / "lib"
        self._tree = tree
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        owners.dirs.add(str(self.base))
        owners.instances.add(self.name)

    # its life

    def boot(self) -> "Machine":
        """Return when systemd has started all that it was to start."""
        self._assemble()
        self.power_on()
        return self

    def power_on(self) -> None:
        assert self._nspawn is None, "it runs"
        argv = [
            *("systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--quiet"),
            *(f"--directory={self.root}", f"--machine={self.name}", "--hostname=lighter-test"),
            *(f"--bind={self.lib}:/var/lib", "--private-network", "--capability=all"),
            "--system-call-filter=@keyring bpf",  # runc makes a session keyring
            *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        ]
        procs = [str(path / "cgroup.procs") for path in self._make_cgroups()]
        with (self.base / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", _ENTER, "sh", str(len(procs)), *procs, *argv],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        await_that(self._find_leader, BOOT_S, f"systemd runs in {self.name}\n{self.console()}")
        await_that(self._has_booted, BOOT_S, f"{self.name} is up\n{self.console()}")
        self._make_cgroups_writable()

    def poweroff(self) -> float:
        """Shut it down as a user does; returns how many seconds that took."""
        assert self._nspawn is not None
        begun = time.monotonic()
        self.run("systemctl", "poweroff", check=False)
        return self.await_off(begun)

    def await_off(self, begun: float, within_s: float = POWEROFF_S) -> float:
        assert self._nspawn is not None
        try:
            self._nspawn.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it is not off after {within_s} s\n{self.console()}") from None
        self._nspawn, self._leader = None, 0
        return time.monotonic() - begun

    def close(self) -> None:
        """End it, by force if need be, and remove all. Raises AssertionError for what is left."""
        problems = []
        if self._nspawn is not None and self._nspawn.poll() is None:
            try:
                self.poweroff()
            except AssertionError as error:
                problems.append(str(error))
                self.cut_power()
        self._nspawn = None
        for cgroup in self._cgroups():
            try:
                await_that(lambda path=cgroup: _remove_cgroups(path), 30, f"{cgroup} is empty")
            except AssertionError as error:
                problems.append(str(error))
        subprocess.run(["umount", str(self.root)], check=False, capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(f"/run/systemd/nspawn/propagate/{self.name}")
        for parent in {path.parent for path in self._cgroups()}:
            with contextlib.suppress(OSError):
                parent.rmdir()
        assert not problems, "\n".join(problems)

    # in it

    @property
    def leader(self) -> int:
        """The host's pid of the machine's first process."""
        return self._leader

    def run(
        self,
        *argv: str,
        timeout: float = RUN_S,
        check: bool = True,
        input: str | None = None,  # noqa: A002 (subprocess.run's word)
    ) -> Done:
        """Run a program in the machine; `check` turns a failure into an assertion with its output.

        At the deadline it is ended with all that it has started in its process group.
        """
        with self.start(*argv) as process:
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                raise AssertionError(
                    f"{' '.join(argv)} runs on after {timeout} s\n{out}{err}"
                ) from None
        done = Done(argv, process.returncode, out, err)
        if check:
            assert done.returncode == 0, (
                f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *argv: str) -> "subprocess.Popen[str]":
        """Start a program in the machine, with pipes."""
        return subprocess.Popen(
            [*self._enter(), *argv],
            env=_ENVIRON,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _enter(self) -> Sequence[str]:
        return ("nsenter", f"--target={self._leader}", "--all", "--wdns=/", "--")

    def put(self, source: Path, path: str) -> None:
        """Copy a file into the machine, which may be off."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def path(self, path: str) -> Path:
        """Where the host sees an absolute path of the machine; not for /run, /tmp, /proc."""
        if path.startswith("/var/lib/"):
            return self.lib / path.removeprefix("/var/lib/")
        return self.root / path.lstrip("/")

    def show(self, unit: str, *properties: str) -> Mapping[str, str]:
        """Properties of a unit, as `systemctl show` prints them."""
        shown = self.run("systemctl", "show", unit, f"--property={','.join(properties)}").stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def main_pid(self, unit: str = "lighterd.service") -> int:
        """The machine's pid of the service's main process; 0 for none."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def journal(self, *options: str) -> str:
        """What journalctl shows, with all that was said before the call."""
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", *options).stdout

    def console_text(self) -> str:
        """All that was said on the console, by every boot; the journal is forwarded to it."""
        return (self.base / "console").read_text(errors="replace")

    def console(self) -> str:
        return self.console_text()[-4000:]

    def report(self) -> str:
        """What a reader of a failed test wants to see; never raises."""
        if not self._leader:
            return self.console()
        try:
            status = self.run("systemctl", "status", "lighterd.service", "--no-pager", check=False)
            return f"{status.stdout}\n{self.journal('-n', '300')}"
        except (AssertionError, OSError) as error:
            return f"{error}\n{self.console()}"

    # how it is made

    def _assemble(self) -> None:
        for name in ("root", "upper", "work"):
            (self.base / name).mkdir()
        options = f"lowerdir={self._tree},upperdir={self.base}/upper,workdir={self.base}/work"
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True
        )
        shutil.copytree(self._tree / "var/lib", self.lib, symlinks=True)
        (self.root / "etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")

    def _cgroups(self) -> list[Path]:
        return [Path(root, _CGROUPS, self.name) for root in hierarchies()]

    def _make_cgroups(self) -> Iterator[Path]:
        for cgroup in self._cgroups():
            cgroup.mkdir(parents=True, exist_ok=True)
            for directory in (cgroup.parent, cgroup):
                # v1: a new cpuset is empty, and takes no process.
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (directory / name).exists() and cgroup.parents[1].name == "cpuset":
                        (directory / name).write_text((directory.parent / name).read_text())
            yield cgroup

    def _find_leader(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, f"systemd-nspawn has ended\n{self.console()}"
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                # nspawn's own child, before it is systemd, has other names.
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._leader = int(child)
        return self._leader > 0

    def _has_booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _make_cgroups_writable(self) -> None:
        """nspawn gives v1's controllers read-only; containers in the machine need them."""
        for line in self.run("cat", "/proc/self/mounts").stdout.splitlines():
            _source, point, kind, options, *_ = line.split()
            if kind == "cgroup" and "ro" in options.split(","):
                self.run("mount", "-o", "remount,bind,rw", point)

    def cut_power(self) -> None:
        """End it at once: everything in it ends with its first process."""
        assert self._nspawn is not None
        with contextlib.suppress(ProcessLookupError):
            if self._leader:
                os.kill(self._leader, signal.SIGKILL)
        try:
            self._nspawn.wait(10)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn, self._leader = None, 0


def _remove_cgroups(path: Path) -> bool:
    """Whether the cgroup and all below it are gone; one with a dying process is busy."""
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True
