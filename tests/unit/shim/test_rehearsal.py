"""The life that a spawner plays before its first fork: it is whole, and it leaves nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

SPAWNER = """
import os, runpy, sys
os.dup2(int(sys.argv.pop()), 3)
runpy.run_module("lighter.shim", run_name="__main__")
"""
SCRIPT = """
import os, sys
from lighter.shim import rehearsal
def held():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))[:-1]
before = len(os.listdir("/proc/self/fd"))
rehearsal.rehearse(sys.argv[1])
assert len(os.listdir("/proc/self/fd")) == before, held()
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
"""


def rehearse(
    directory: Path, script: str = SCRIPT, *arguments: str, **environ: str
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-I", "-c", script, str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], **environ},
    )


def output(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_it_leaves_no_descriptor_no_child_no_file_and_says_nothing(tmp_path: Path) -> None:
    assert output(rehearse(tmp_path / "r")) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_each_life_is_played_to_its_end(tmp_path: Path) -> None:
    """Created, started, an exec that ended, init's end: all events, once per life."""
    script = """
import sys
from lighter.proto import events
from lighter.shim import rehearsal
from lighter.shim.link import Link
told, publish = [], Link.publish
def note(self, topic, body, timestamp=0):
    told.append((topic, body.get("exec_id", ""), body.get("error", "")))
    return publish(self, topic, body, timestamp)
Link.publish = note
rehearsal.rehearse(sys.argv[1])
life = [
    (events.CREATE, "", ""), (events.START, "", ""), (events.EXEC_STARTED, "x", ""),
    (events.EXIT, "x", ""), (events.EXIT, "", ""), (events.CLOSED, "", ""),
]
assert told == life * (1 + rehearsal.LIVES), told
"""
    assert output(rehearse(tmp_path / "r", script)) == (0, "", "")


def test_a_spawners_work_between_two_forks_is_played_too(tmp_path: Path) -> None:
    """All of it, by which memory a shim shares is written to; nothing and nobody is left of it."""
    script = """
import json, os, sys
from lighter.shim import rehearsal, spawner
settings = {"instance": "7e577e57", "umask": 0o022, "rlimits": {}}
settings = spawner.Settings(json.dumps(settings | {"rehearsal": sys.argv[1]}))
no_order = rehearsal.no_order(sys.argv[1])
ran = set()
before = os.listdir("/proc/self/fd")
sys.setprofile(lambda frame, _event, _argument: ran.add(frame.f_code.co_name))
spawner._rehearse_service(settings, no_order)
sys.setprofile(None)
assert os.listdir("/proc/self/fd") == before, os.listdir("/proc/self/fd")
assert ran > {"_make_spare", "_serve_one", "_use_spare", "_fork", "_reply", "_reap"}, ran
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
"""
    assert output(rehearse(tmp_path / "r", script)) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    killed = rehearse(tmp_path / "r")
    while not (tmp_path / "r" / "task").exists():
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (tmp_path / "r").exists()
    assert output(rehearse(tmp_path / "r")) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_on_a_slow_host_it_ends_with_the_life_that_is_late(tmp_path: Path) -> None:
    """Otherwise the manager would give the spawner up, and start another one as slow."""
    script = """
import sys
from lighter.proto.errors import DeadlineExceeded
from lighter.shim import rehearsal
rehearsal.LIMIT_S = 0.0
lives, birth = [], lambda: lives.append(1)
try:
    rehearsal.rehearse(sys.argv[1], birth)
except DeadlineExceeded as late:
    print(late, len(lives))
"""
    code, out, _ = output(rehearse(tmp_path / "r", script))
    assert (code, out) == (0, "play lives: not over in 0 s 1\n")
    assert list(tmp_path.iterdir()) == []


# What a process is besides its memory; signals but the two that stay armed (reaper.arm).
STATE = """
import ctypes, os, signal, sys
from types import SimpleNamespace
from lighter.proto.errors import DeadlineExceeded
from lighter.shim import reaper, rehearsal
def state():
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # of this listing
    wakeup = signal.set_wakeup_fd(-1)
    subreaper = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(subreaper))  # PR_GET_CHILD_SUBREAPER
    handlers = [signal.getsignal(one) for one in signal.valid_signals() if one not in armed]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        child = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        child = None
    return fds, wakeup, subreaper.value, handlers, mask, child, os.getcwd()
armed = (signal.SIGCHLD, reaper.LISTENING)
def play(directory):
    before = state()
    try:
        rehearsal.rehearse(directory)
    except DeadlineExceeded:
        assert state() == before, (state(), before)
    else:
        raise SystemExit("it was not cut short")
"""


def test_of_a_life_cut_short_nothing_stays(tmp_path: Path) -> None:
    """Wherever a slow host has cut it: its fork, the runtime's run, an answer, an end."""
    script = """
for limit_ms in (0, 1, 2, 5, 10, 20):
    pid = os.fork()
    if not pid:
        rehearsal.LIMIT_S = limit_ms / 1000
        play(sys.argv[1])
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0, limit_ms
"""
    assert output(rehearse(tmp_path / "r", STATE + script)) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("topic", ["create", "start", "exec_started", "exec_exit", "exit"])
def test_of_a_life_cut_short_at_an_event_nothing_stays(tmp_path: Path, topic: str) -> None:
    script = """
import time
from lighter.proto import events
from lighter.shim.link import Link
points = {
    "create": (events.CREATE, ""), "start": (events.START, ""), "exit": (events.EXIT, ""),
    "exec_started": (events.EXEC_STARTED, "x"), "exec_exit": (events.EXIT, "x"),
}
point = points[sys.argv[2]]
late_s = 0
rehearsal.time = SimpleNamespace(monotonic=lambda: time.monotonic() + late_s)
publish = Link.publish
def cut(self, topic, body, timestamp=0):
    global late_s
    if (topic, body.get("exec_id", "")) == point:
        late_s = 3600
        self._loop.stop()
    return publish(self, topic, body, timestamp)
Link.publish = cut
play(sys.argv[1])
"""
    assert output(rehearse(tmp_path / "r", STATE + script, topic)) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_of_a_life_that_fails_no_descriptor_stays(tmp_path: Path) -> None:
    """Not of an error's either, whose traceback has the life in it."""
    script = """
from lighter.shim import shim
def fails(*_arguments):
    raise OSError("no task")
shim.Task = fails
before = state()
try:
    rehearsal.rehearse(sys.argv[1])
except OSError:
    assert state() == before, (state(), before)
else:
    raise SystemExit("it did not fail")
"""
    assert output(rehearse(tmp_path / "r", STATE + script)) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_fault_points_are_for_shims(tmp_path: Path) -> None:
    assert output(rehearse(tmp_path / "r", FAULT="shim.runc-created:abort")) == (0, "", "")


def test_asked_to_it_plays_without_the_plan_which_is_there_for_shims_then(tmp_path: Path) -> None:
    """So faults can be met by the functions that shims are made of where none are planned."""
    script = """
import sys
from lighter.proto import faults
from lighter.proto.errors import Internal
from lighter.shim import rehearsal
from lighter.shim.task import Task
before = [Task.start]  # in a module it would be replaced too
rehearsal.rehearse(sys.argv[1])
assert Task.start is not before[0], "it was not copied"
try:
    faults.hit("shim.claimed")
except Internal:
    print("met")
"""
    planned = {"FAULT": "shim.claimed:error", "FAULT_REHEARSED": "1"}
    assert output(rehearse(tmp_path / "r", script, **planned)) == (0, "met\n", "")
    code, out, err = output(rehearse(tmp_path / "r", script, FAULT="shim.claimed:error"))
    assert code == 1 and "it was not copied" in err, out


def test_where_it_cannot_be_played_the_spawner_serves_all_the_same(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = {"instance": "7e577e57", "rehearsal": str(tmp_path / "no" / "such")}
    settings |= {"umask": 0o022, "rlimits": {}}
    with ours, theirs:
        spawner = subprocess.Popen(
            [sys.executable, "-I", "-c", SPAWNER, json.dumps(settings), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        ours.send(msgpack.packb({"ident": 7, "kind": "no-such-kind"}))
        idents = []
        while 7 not in idents:
            packet, fds, _flags, _address = socket.recv_fds(ours, 1 << 16, 1)
            assert packet, "it ended"
            idents.append(msgpack.unpackb(packet)["ident"])
            for fd in fds:
                os.close(fd)
    _out, err = spawner.communicate(timeout=60)
    assert spawner.returncode == 0
    assert err.startswith("lighter-spawner: rehearse: [Errno 2]")
