"""A virtual machine of a test's own: started, asked, rebooted, and cut off from its power.

qemu emulates every instruction (tcg), so it needs no KVM and is the same on every host; it is
also slow: 10 to 20 times slower than the host. Deadlines here are meant to be met on a busy one.

Each machine writes to an overlay of its own over the shared disk (disk.py). Commands go over a
virtio serial port to agent.py, the journal comes out of another; there is no network. Nothing of it
outlives `close`, nor the process that made it: qemu is killed when its parent ends.

    with switched_on(disk, payload) as machine:
        machine.run("true")
"""

import base64
import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests import census
from tests.vm.disk import Disk

SYSTEMD_S = 180.0  # until systemd shows itself: the kernel and its initrd
BOOT_S = 600.0  # until the start is over, the manager's with it
COMMAND_S = 120.0
END_S = 60.0
MEMORY_MIB = 2048
CPUS = 2
_CONNECT_S = 120.0
_POLL_S = 0.05
_SEND_S = 60  # for a request that the guest does not read
_TOLD_BYTES = 12_000
# The first thing that systemd puts on the console.
_SYSTEMD_IS_HERE = b"Welcome to "
_RESTARTS = b"reboot: machine restart"  # the kernel's last word
# Nobody logs in at the console of a test. The emulated processor offers virtualisation, AES, whose
# modules take seconds to load (switched off by `-cpu max,svm=off`, the guest does not boot: its
# programs abort in the dynamic loader). On a busy host the guest's processors stand still at times,
# which its RCU would tell at length. Its time stamp counters, which are one, look unsynchronised
# then, and every look at the clock would go to an emulated timer. TERM is systemd's: no colours.
_UNWATCHED = (
    "systemd.show_status=1 systemd.mask=serial-getty@ttyS0.service "
    "systemd.mask=systemd-logind.service modprobe.blacklist=kvm,kvm_amd,aesni_intel,powernow_k8 "
    "rcupdate.rcu_cpu_stall_suppress=1 tsc=reliable mitigations=off TERM=dumb"
)


@dataclass(frozen=True)
class Done:
    """A command that ended by itself; `code` is negative for a signal."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace").strip()


class NoBoot(AssertionError):
    """The guest's start was not over in time."""


class Pending:
    """A command under way."""

    def __init__(self, what: str, answers: "Queue[dict[str, Any] | None]", deadline: float) -> None:
        self._what = what
        self._answers = answers
        self._deadline = deadline

    def result(self, *, check: bool = True) -> Done:
        """Its end. Raises AssertionError when the time is up, the machine is gone, or it fails."""
        try:
            # The guest keeps the time; the rest is for the way there and back.
            answer = self._answers.get(timeout=max(0.0, self._deadline - time.monotonic()) + 60)
        except Empty:
            raise AssertionError(f"{self._what}: the machine does not answer") from None
        if answer is None:
            raise AssertionError(f"{self._what}: the machine went away")
        out, err = base64.b64decode(answer["stdout"]), base64.b64decode(answer["stderr"])
        told = f"{out.decode(errors='replace')}\n{err.decode(errors='replace')}"
        assert answer["code"] is not None, f"{self._what}: the time is up\n{told}"
        assert not check or answer["code"] == 0, f"{self._what}: code {answer['code']}\n{told}"
        return Done(answer["code"], out, err)


class Machine:
    """One machine. `boot_id` changes with each boot."""

    def __init__(
        self,
        disk: Disk,
        payload: Path,
        *,
        image: Path | None = None,
        write_log: Path | None = None,
    ) -> None:
        """`payload` becomes /opt/payload, by a copy; `image` is used instead of an overlay;
        with `write_log` every write to the disk is also written there (see powercut.py).
        """
        # Not pytest's tmp_path: a socket's path has at most 107 bytes.
        self.base = Path(tempfile.mkdtemp(prefix="lighter-vm-", dir="/tmp"))
        self._disk = disk
        self._payload = payload
        self._image = image
        self._write_log = write_log
        self._console = self.base / "console"
        self._journal = self.base / "journal"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._idents = itertools.count(1)
        self._waiting: dict[int, Queue[dict[str, Any] | None]] = {}
        self._hellos: Queue[str | None] = Queue()
        self.boot_id = ""

    # power

    def start(self) -> "Machine":
        """Switch on, and wait until the guest's start is over. Raises NoBoot.

        It is tried once more when systemd has never shown itself: then nothing of ours has run.
        """
        assert self._process is None or self._process.poll() is not None, "it runs already"
        try:
            self._switch_on()
        except NoBoot as error:
            if self._is_seen():
                raise
            print(f"{error}\nIt has not come to systemd, and is switched on again.")
            self._end(signal.SIGKILL)
            self._switch_on()
        return self

    def _switch_on(self) -> None:
        self._hellos = Queue()
        self._console.write_bytes(b"")
        with (self.base / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._connect()
        self._await_boot()

    def reboot(self) -> None:
        """An orderly one, all services stopped; returns when the next start is over.

        The emulator can stand in the kernel's first second, as in `start`: then, too, it is
        switched on once more, which nothing of ours can see.
        """
        self.begin("systemctl reboot")
        try:
            self._await_boot()
        except NoBoot as error:
            if self._is_seen():
                raise
            print(f"{error}\nIt has not come to systemd again, and is switched on again.")
            self._end(signal.SIGKILL)
            self._switch_on()

    def cut_power(self) -> None:
        """qemu is killed with SIGKILL: the guest's memory is gone at once."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._end(signal.SIGKILL)
        shutil.rmtree(self.base, ignore_errors=True)

    def _end(self, signum: int) -> None:
        assert self._process is not None
        self._process.send_signal(signum)
        self._process.wait(END_S)
        if self._socket is not None:
            self._socket.close()

    # commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = COMMAND_S,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command (a text is for the shell) as root in the machine and wait for its end.

        Raises AssertionError with its output when it fails (unless `check` is false) or when it
        does not end in time; then it was killed.
        """
        pending = self.begin(command, stdin=stdin, timeout_s=timeout_s, env=env)
        return pending.result(check=check)

    def begin(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = COMMAND_S,
        env: Mapping[str, str] | None = None,
    ) -> Pending:
        """Start a command beside others."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        ident = next(self._idents)
        answers: Queue[dict[str, Any] | None] = Queue()
        self._waiting[ident] = answers
        request = {
            "id": ident,
            "argv": argv,
            "stdin": base64.b64encode(stdin).decode(),
            "timeout_s": timeout_s,
            "env": dict(env or {}),
        }
        assert self._socket is not None, "the machine was not started"
        what = command if isinstance(command, str) else shlex.join(command)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise AssertionError(f"{what}: the machine takes no request: {error}") from error
        return Pending(what, answers, time.monotonic() + timeout_s)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        data = content.encode() if isinstance(content, str) else content
        folder = shlex.quote(os.path.dirname(path))
        name = shlex.quote(path)
        self.run(f"mkdir -p {folder}; cat >{name}; chmod {mode:o} {name}", stdin=data)

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout.decode(errors="replace")

    def await_that(self, command: str, timeout_s: float, what: str = "") -> None:
        """Poll, in the guest, until a shell command succeeds."""
        loop = f"until {command}; do sleep 0.2; done"
        done = self.begin(loop, timeout_s=timeout_s)
        try:
            done.result()
        except AssertionError as error:
            raise AssertionError(f"not true after {timeout_s} s: {what or command}") from error

    # what it says

    def tell(self) -> str:
        """For a failed test: the ends of qemu's messages, of the console and of the journal, as
        they came out, and what a guest that still answers has to say.
        """
        parts = []
        for path in (self.base / "qemu.log", self._console, self._journal):
            data = path.read_bytes() if path.exists() else b""
            parts.append(f"--- {path.name}\n{data[-_TOLD_BYTES:].decode(errors='replace')}")
        with contextlib.suppress(AssertionError, OSError):
            state = "systemctl --failed --no-pager; ps -eo pid,stat,etimes,cgroup:60,args; free -m"
            parts.append(f"--- now\n{self.run(state, timeout_s=60, check=False).text}")
        return "\n".join(parts)

    def _is_seen(self) -> bool:
        """Whether systemd has shown itself since the machine was switched on, or restarted."""
        return _SYSTEMD_IS_HERE in self._console.read_bytes().rpartition(_RESTARTS)[2]

    # inside

    def _argv(self) -> list[str]:
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            *qemu_argv(self._disk, _UNWATCHED),
            *("-display", "none", "-serial", "chardev:console"),
            *("-chardev", f"file,id=console,path={self._console},append=on"),
            *("-chardev", f"socket,id=agent,path={self.base}/agent,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=lighter.agent"),
            *("-chardev", f"file,id=journal,path={self._journal},append=on"),
            *("-device", "virtserialport,chardev=journal,name=lighter.journal"),
            *self._drives(),
        ]

    def _drives(self) -> list[str]:
        image = self._image or self.base / "disk.qcow2"
        if not image.exists():
            make_overlay(self._disk.image, image)
        copy = self.base / "payload.qcow2"
        if not copy.exists():
            make_overlay(self._payload, copy)
        kind = "qcow2" if image.suffix == ".qcow2" else "raw"
        node: dict[str, Any] = {"driver": kind, "file": _host_file(image)}
        if self._write_log is not None:
            node = {"driver": "blklogwrites", "file": node, "log": _host_file(self._write_log)}
        return [
            *("-blockdev", json.dumps({**node, "node-name": "root"})),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-drive", f"file={copy},format=qcow2,if=virtio,cache=unsafe"),
        ]

    def _connect(self) -> None:
        end = time.monotonic() + _CONNECT_S
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                sock.connect(str(self.base / "agent"))
                break
            except OSError:
                sock.close()
                log = (self.base / "qemu.log").read_text(errors="replace")
                assert self._process is not None and self._process.poll() is None, log
                assert time.monotonic() < end, f"qemu does not listen: {log}"
                time.sleep(_POLL_S)
        # For sending alone: an answer may take as long as its command.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_S, 0))
        self._socket = sock
        threading.Thread(target=self._read, args=(sock, self._hellos), daemon=True).start()

    def _read(self, sock: socket.socket, hellos: "Queue[str | None]") -> None:
        """Hand each answer to who waits for it, until the machine or the boot is over."""
        with contextlib.suppress(OSError), sock.makefile("rb") as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # cut short by a reboot
                if "hello" in message:
                    self._nobody_answers()
                    hellos.put(message["hello"])
                elif (answers := self._waiting.pop(message["id"], None)) is not None:
                    answers.put(message)
        hellos.put(None)
        self._nobody_answers()

    def _nobody_answers(self) -> None:
        while self._waiting:
            self._waiting.popitem()[1].put(None)

    def _await_boot(self) -> None:
        """Until an agent of a boot that was not yet seen says hello, and the start is over."""
        begin = time.monotonic()
        while True:
            passed = time.monotonic() - begin
            try:
                boot_id = self._hellos.get(timeout=_POLL_S)
            except Empty:
                if passed > BOOT_S or (passed > SYSTEMD_S and not self._is_seen()):
                    raise NoBoot(f"no boot in {passed:.0f} s") from None
                continue
            if boot_id is None:
                raise NoBoot("qemu ended")
            if boot_id != self.boot_id:
                break
        self.boot_id = boot_id
        left = max(1.0, begin + BOOT_S - time.monotonic())
        # "degraded" is a start that is over too; tests ask for failed units where it matters.
        self.run("systemctl is-system-running --wait", timeout_s=left, check=False)


@contextlib.contextmanager
def switched_on(
    disk: Disk, payload: Path, *, image: Path | None = None, write_log: Path | None = None
) -> Iterator[Machine]:
    """A running machine (see Machine). Raises AssertionError when something of it is left on the
    host after its end; an error inside carries what the machine has said.
    """
    owners = census.Owners(exclusive=False)  # other machines come and go meanwhile
    before = census.Census.take(owners)
    machine = Machine(disk, payload, image=image, write_log=write_log)
    owners.dirs.add(str(machine.base))
    try:
        yield machine.start()
    except Exception as error:
        error.add_note(machine.tell())
        raise
    finally:
        machine.close()
    left = census.Census.settled(owners, before)
    assert not left, census.report(left)


def qemu_argv(disk: Disk, append: str = "") -> list[str]:
    """The machine without its disks and ends: `make vm-shell` gives it a terminal instead."""
    qemu = shutil.which("qemu-system-x86_64") or "/usr/libexec/qemu-kvm"
    return [
        *(qemu, "-no-user-config", "-nodefaults", "-machine", "pc"),
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
        *("-smp", str(CPUS), "-m", str(MEMORY_MIB), "-nic", "none"),
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd)),
        *("-append", f"root=/dev/vda rw console=ttyS0 panic=0 {append} {disk.append}".strip()),
        *("-device", "virtio-serial-pci", "-device", "virtio-rng-pci"),
    ]


def _host_file(path: Path) -> dict[str, Any]:
    """The host survives the guest's power cuts: it need not flush."""
    return {"driver": "file", "filename": str(path), "cache": {"no-flush": True}}


def make_overlay(below: Path, overlay: Path) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(below), str(overlay)]
    subprocess.run(argv, check=True, timeout=60, stdin=subprocess.DEVNULL)
