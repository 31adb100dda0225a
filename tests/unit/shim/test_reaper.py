"""The one waitpid: real children, in a process of its own because it waits for all of them."""

import os
import signal
import subprocess
import sys

import pytest

from lighter.shim.reaper import exit_status

_PRELUDE = """
import os, signal, time
from lighter.shim.loop import Loop
from lighter.shim.reaper import Reaper, arm

arm()

def report(error):
    print("error", repr(error))

loop = Loop(report)
reaper = Reaper(loop)

def spawn(script):
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], {})

def zombie(pid):
    # Returns once the child has ended; it stays to be reaped, unless that has happened.
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        pass

def told(name):
    def on_exit(status, at):
        print(name, status, abs(time.time_ns() - at) < 60 * 10**9)
    return on_exit

def finish():
    # One round: what is readable by now, then the timer.
    loop.call_later(0, loop.stop)
    loop.run()
"""


def run(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PRELUDE + script], capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize(
    ("ending", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)]
)
def test_an_exit_is_told_once_with_a_shells_number(ending: str, status: int) -> None:
    assert run(f"""
pid = spawn({ending!r})
reaper.expect(pid, told("child"))
zombie(pid)
finish()
finish()
""") == [f"child {status} True"]


def test_an_exit_before_anyone_asks_is_kept_while_a_call_is_in_flight() -> None:
    assert run("""
reaper.hold()
pid = spawn("exit 3")
zombie(pid)
reaper.drain()
reaper.expect(pid, told("early"))
reaper.release()
finish()
""") == ["early 3 True"]


def test_an_unknown_child_keeps_its_pid_while_a_call_is_in_flight_and_no_longer() -> None:
    assert run("""
reaper.hold()
reaper.hold()
pid = spawn("exit 3")
zombie(pid)
reaper.drain()
print(os.path.exists(f"/proc/{pid}"))
reaper.release()
finish()
print(os.path.exists(f"/proc/{pid}"))
reaper.release()
finish()
print(os.path.exists(f"/proc/{pid}"))
""") == ["True", "True", "False"]


def test_known_children_are_reaped_past_an_unknown_one() -> None:
    assert run("""
reaper.hold()
stranger = spawn("exit 1")
zombie(stranger)
known = spawn("exit 4")
reaper.expect(known, told("known"))
zombie(known)
finish()
reaper.release()
finish()
""") == ["known 4 True"]


def test_strangers_are_reaped_at_once_otherwise() -> None:
    assert run("""
pids = [spawn("exit 1") for _ in range(20)]
for pid in pids:
    zombie(pid)
finish()
print([pid for pid in pids if os.path.exists(f"/proc/{pid}")])
""") == ["[]"]


def test_a_pid_that_is_no_child_is_refused() -> None:
    assert run("""
try:
    reaper.expect(1, told("init"))
except ChildProcessError:
    print("refused")
finish()
""") == ["refused"]


def test_a_crowd_that_ends_together_is_told_one_by_one() -> None:
    lines = run("""
pids = [spawn(f"exit {number}") for number in range(50)]
for number, pid in enumerate(pids):
    reaper.expect(pid, told(number))
for pid in pids:
    zombie(pid)
finish()
""")
    assert sorted(int(line.split()[0]) for line in lines) == list(range(50))
    assert all(line.split()[0] == line.split()[1] for line in lines)


def test_a_core_dump_counts_as_its_signal() -> None:
    class Info:
        si_code = os.CLD_DUMPED
        si_status = signal.SIGSEGV

    assert exit_status(Info()) == 139  # type: ignore[arg-type]


def test_the_wakeup_pipe_never_blocks_the_signal_handler() -> None:
    # 100,000 children are more than a pipe takes; 64 KiB of wakeups in it do the same.
    assert run("""
read_end = reaper._wakeup
write_end = signal.set_wakeup_fd(-1)
signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
try:
    while True:
        os.write(write_end, b"x" * 4096)
except BlockingIOError:
    pass
pid = spawn("exit 6")
reaper.expect(pid, told("child"))
zombie(pid)
finish()
""") == ["child 6 True"]


def test_word_of_a_manager_is_passed_on_and_takes_no_exit_away() -> None:
    assert run("""
from lighter.proto.shim_api import LISTENING

reaper.on_listening = lambda: print("listening")
pid = spawn("exit 4")
reaper.expect(pid, told("child"))
zombie(pid)
os.kill(os.getpid(), LISTENING)
finish()
os.kill(os.getpid(), LISTENING)
finish()
finish()
""") == ["child 4 True", "listening", "listening"]


def test_word_of_a_manager_to_one_without_a_link_is_nothing() -> None:
    assert (
        run("""
from lighter.proto.shim_api import LISTENING

os.kill(os.getpid(), LISTENING)
finish()
""")
        == []
    )
