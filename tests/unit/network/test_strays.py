"""Plugins that were left running, among processes of others."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lighter.daemon.network.strays import TOKEN, Strays
from tests.harness import await_that
from tests.stuckmemory import stuck_process

pytestmark = pytest.mark.root

MARK = f"lt-strays-{os.getpid()}"


@pytest.fixture
def left() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], env={TOKEN: MARK}) as process:
        yield process
        process.kill()


def test_a_process_whose_memory_is_locked_holds_up_no_end(
    tmp_path: Path, left: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for once, and its thread not at all when the manager stops."""
    found = []

    async def twice() -> None:
        strays = Strays(look_s=5)
        found.extend([await strays.end({MARK}), await strays.end({MARK})])

    with stuck_process(tmp_path / "disk") as stuck:
        ending = threading.Thread(target=lambda: asyncio.run(twice()), daemon=True)
        ending.start()
        ending.join(60)
        over = list(found)
    assert over == [[left.pid], []]
    assert caplog.text.count(f"pass over process {stuck}:") == 1
    assert left.wait(10) == -signal.SIGKILL


def test_what_is_in_a_container_or_another_users_is_no_plugin(
    left: subprocess.Popen[bytes],
) -> None:
    inside = ["unshare", "--pid", "--fork", "--kill-child", "env", f"{TOKEN}={MARK}"]
    with ExitStack() as stack:
        others = [
            stack.enter_context(subprocess.Popen(["sleep", "600"], env={TOKEN: MARK}, user=65534)),
            stack.enter_context(subprocess.Popen([*inside, "sleep", "600"])),
        ]
        for other in others:
            stack.callback(other.kill)
        children = Path(f"/proc/{others[1].pid}/task/{others[1].pid}/children")
        await_that(lambda: bool(children.read_text()), 30, "it has forked")
        environ = Path(f"/proc/{int(children.read_text())}/environ")
        await_that(lambda: MARK.encode() in environ.read_bytes(), 30, "it has the mark")
        assert asyncio.run(Strays(look_s=30).end({MARK})) == [left.pid]
        assert [other.poll() for other in others] == [None, None]
