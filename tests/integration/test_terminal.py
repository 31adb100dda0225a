"""Terminals through a real pty: detach, come back, type on, resize; and many execs at once."""

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.typist import Typist

SHELL = ("run", "--name", "box", "-it", REFERENCE, "sh")

pytestmark = pytest.mark.shared_lighterd


@pytest.fixture
def typists(lighterd: Lighterd) -> Iterator["contextlib.ExitStack"]:
    with contextlib.ExitStack() as stack:
        yield stack


def typist(stack: contextlib.ExitStack, lighterd: Lighterd, *args: str) -> Typist:
    made = Typist(lighterd.ctl_argv(*args))
    stack.callback(made.close)
    return made


@pytest.mark.parametrize(
    ("flags", "keys"),
    [((), b"\x10\x11"), (("--detach-keys", "ctrl-a,d"), b"\x01d")],
)
def test_the_keys_detach_and_attach_comes_back_with_what_is_typed(
    lighterd: Lighterd, typists: contextlib.ExitStack, flags: tuple[str, ...], keys: bytes
) -> None:
    first = typist(typists, lighterd, "run", *flags, *SHELL[1:])
    first.expect(rb"# ")
    first.type(b"word=kept; echo $((40+2))\n")
    first.expect(rb"\r\n42\r\n")
    for key in keys:
        first.type(bytes([key]))
        time.sleep(0)  # each is a read of its own, or not: both must do
    assert first.wait() == 0
    assert b"detached from box, which runs on" in first.seen
    for turn in range(2):
        again = typist(typists, lighterd, "attach", *flags, "box")
        again.type(b"echo again${word}%d\n" % turn)
        again.expect(rb"\r\nagainkept%d\r\n" % turn)
        again.type(keys)
        assert again.wait() == 0
    last = typist(typists, lighterd, "attach", "box")
    last.type(b"exit 7\n")
    assert last.wait() == 7


def test_without_keys_everything_typed_arrives(
    lighterd: Lighterd, typists: contextlib.ExitStack
) -> None:
    shell = typist(typists, lighterd, "run", "--detach-keys", "", *SHELL[1:])
    shell.expect(rb"# ")
    # What is typed back has the quotes, what echo says has none.
    shell.type(b"stty raw -echo; echo is''raw; head -c 3 | od -An -tx1; stty sane; exit 3\n")
    shell.expect(rb"israw")
    shell.type(b"\x10\x11z")
    shell.expect(rb"10 11 7a")
    assert shell.wait() == 3
    for wrong in ("ctrl-", "ctrl-1", "ab", "a,,b"):
        refused = lighterd.ctl("attach", "--detach-keys", wrong, "box")
        assert refused.returncode == 2 and b"is no key" in refused.stderr, wrong


def test_exec_has_keys_too_and_leaves_its_process_behind(
    lighterd: Lighterd, typists: contextlib.ExitStack
) -> None:
    lighterd.ctl("run", "-d", REFERENCE, "box", "sleep", "1000", check=True)
    shell = typist(typists, lighterd, "exec", "-it", "--detach-keys", "ctrl-@,q", "box", "sh")
    shell.expect(rb"# ")
    shell.type(b"\x00q")
    assert shell.wait() == 0
    assert b"sh" in lighterd.ctl("top", "box", check=True).stdout


def test_a_session_survives_a_storm_of_resizes(
    lighterd: Lighterd, typists: contextlib.ExitStack
) -> None:
    """Output and input go on meanwhile, and the last size is the one that holds."""
    shell = typist(typists, lighterd, *SHELL)
    shell.expect(rb"# ")
    shell.type(b"i=0; while [ $i -lt 300 ]; do echo line$i; i=$((i+1)); done; echo do''ne\n")
    for turn in range(1500):
        shell.resize(20 + turn % 50, 60 + turn % 100)
    out = shell.expect(rb"\r\ndone\r\n", timeout_s=60)
    assert re.findall(rb"line(\d+)\r", out) == [b"%d" % number for number in range(300)]
    shell.resize(33, 111)

    def asked() -> bool:
        shell.type(b"stty size\n")
        return b"33 111" in shell.expect(rb"\r\n\d+ \d+\r\n")

    await_that(asked, 20, "the last size has arrived")
    shell.type(b"exit 5\n")
    assert shell.wait() == 5


def test_30_execs_at_once_none_is_lost(lighterd: Lighterd) -> None:
    """Each with its own output and its own code, into one container."""
    lighterd.ctl("run", "-d", REFERENCE, "box", "sleep", "1000", check=True)
    ended: dict[int, tuple[int, bytes]] = {}
    said: list[bytes] = []

    def run(number: int) -> None:
        script = f"echo out{number}; exit {number}"
        done = lighterd.ctl("exec", "box", "sh", "-c", script, timeout=90)
        ended[number] = (done.returncode, done.stdout)
        said.append(done.stderr)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == {number: (number, b"out%d\n" % number) for number in range(30)}, said
    with lighterd.client() as client:
        found = client.call("tasks", "top", id="box")["processes"]
    assert [row["args"] for row in found] == [["sleep", "1000"]]


def test_an_attached_stdin_that_ends_does_not_end_the_container(lighterd: Lighterd) -> None:
    """Attach, write, go; attach again: the first one's end of file is its own."""
    lighterd.ctl("run", "-d", "-i", "--name", "cat", REFERENCE, "cat", check=True)
    for words in (b"first\n", b"second\n"):
        with subprocess.Popen(
            lighterd.ctl_argv("attach", "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as attached:
            assert attached.stdin is not None and attached.stdout is not None
            attached.stdin.write(words)
            attached.stdin.flush()
            assert attached.stdout.readline() == words
            attached.send_signal(signal.SIGKILL)
    assert lighterd.ctl("logs", "cat", check=True).stdout == b"first\nsecond\n"
