"""A manager of one release over shims of another, both ways, with real containers.

Upgrade: shims of the first release under this manager. Rollback: shims of this release under the
first one's manager. Containers, their output and their exit codes notice neither.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import Change
from tests.harness import BIN, Lighterd, await_that
from tests.lives import await_handler

WAIT_S = 30.0


def switch(lighterd: Lighterd, programs: Path, *, hard: bool) -> None:
    """End this manager, start that of another release."""
    if hard:
        lighterd.kill9()
    else:
        assert lighterd.stop() == 0
    lighterd.use(programs)
    lighterd.start()


def begin(lighterd: Lighterd, name: str, script: str, *options: str) -> None:
    image = lighterd.import_busybox()
    argv = ["run", "-d", "--name", name, *options, image, "sh", "-c", script]
    lighterd.ctl(*argv, check=True)


def tasks(lighterd: Lighterd) -> dict[str, dict[str, Any]]:
    rows = json.loads(lighterd.ctl("tasks", "ls", "--format", "json", check=True).stdout)
    return {row["id"]: row for row in rows}


def await_status(lighterd: Lighterd, name: str, status: str) -> None:
    await_that(lambda: tasks(lighterd)[name]["status"] == status, WAIT_S, f"{name} is {status}")


@pytest.mark.parametrize("hard", [True, False], ids=["killed", "stopped"])
def test_a_shim_of_the_other_release_obeys(change: Change, changing: Lighterd, hard: bool) -> None:
    script = "echo before; while read line; do echo got $line; [ $line != end ] || exit 5; done"
    begin(changing, "c", script, "-i")
    pid = tasks(changing)["c"]["pid"]
    switch(changing, change.after, hard=hard)
    await_status(changing, "c", "running")
    assert tasks(changing)["c"]["pid"] == pid
    # exec: output, exit code, and what it sees
    done = changing.ctl("exec", "c", "sh", "-c", "cat /proc/1/comm; exit 7")
    assert (done.returncode, done.stdout) == (7, b"sh\n")
    # pause and resume
    changing.ctl("pause", "c", check=True)
    await_status(changing, "c", "paused")
    changing.ctl("resume", "c", check=True)
    await_status(changing, "c", "running")
    # attach: input, output, and the code of the process's end
    attached = changing.ctl("attach", "c", input=b"one\nend\n")
    assert attached.stdout.endswith(b"got one\ngot end\n")
    assert attached.returncode == 5
    assert changing.ctl("logs", "c", check=True).stdout == b"before\ngot one\ngot end\n"
    await_status(changing, "c", "stopped")
    changing.ctl("rm", "c", check=True)
    await_that(lambda: not changing.shims(), WAIT_S, "its shim has ended")


def test_a_signal_and_a_wait_reach_it(change: Change, changing: Lighterd) -> None:
    begin(changing, "c", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
    await_handler(tasks(changing)["c"]["pid"], signal.SIGTERM)
    switch(changing, change.after, hard=True)
    await_status(changing, "c", "running")
    waiting = subprocess.Popen(changing.ctl_argv("tasks", "wait", "c"), stdout=subprocess.PIPE)
    changing.ctl("kill", "-s", "TERM", "c", check=True)
    out, _ = waiting.communicate(timeout=WAIT_S)
    assert waiting.returncode == 9 or b"9" in out
    assert tasks(changing)["c"]["exit_status"] == 9
    changing.ctl("rm", "c", check=True)


def test_ends_without_a_manager_are_exact(change: Change, changing: Lighterd) -> None:
    """Containers that end between the two managers, and between those two and back."""
    codes = {f"c{number}": 11 * number + 1 for number in range(8)}
    for turn, programs in enumerate((change.after, change.before)):
        names = {f"{name}-{turn}": code for name, code in codes.items()}
        gate = changing.base / f"gate{turn}"
        gate.mkdir()
        for name, code in names.items():
            mount = f"type=bind,src={gate},dst=/gate,options=rbind:ro"
            script = f"until [ -e /gate/open ]; do usleep 20000; done; exit {code}"
            begin(changing, name, script, "--mount", mount)
        pids = [row["pid"] for row in tasks(changing).values() if row["status"] == "running"]
        changing.kill9()
        (gate / "open").touch()
        await_that(
            lambda pids=pids: not any(os.path.exists(f"/proc/{pid}") for pid in pids),
            WAIT_S,
            "all have ended",
        )
        changing.use(programs)
        changing.start()
        for name, code in names.items():
            await_status(changing, name, "stopped")
            assert tasks(changing)[name]["exit_status"] == code, name
    for name in tasks(changing):
        changing.ctl("rm", name, check=True)


def test_an_attached_client_goes_on(change: Change, changing: Lighterd) -> None:
    """ctl of the release before, attached over the change, to the exit code."""
    image = changing.import_busybox()
    script = "echo ready; while read line; do echo got $line; done; exit 6"
    argv = changing.ctl_argv("run", "-i", "--name", "c", image, "sh", "-c", script)
    attached = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert attached.stdin is not None and attached.stdout is not None
    assert attached.stdout.readline() == b"ready\n"
    switch(changing, change.after, hard=True)
    attached.stdin.write(b"x\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == b"got x\n"
    attached.stdin.close()
    assert attached.wait(WAIT_S) == 6
    attached.stdout.close()
    changing.ctl("rm", "c", check=True)


def test_ctl_of_either_release_speaks_to_the_other(change: Change, changing: Lighterd) -> None:
    """Before the change: the manager of one, the command line of the other."""
    begin(changing, "c", "sleep 1000")
    manager = changing.bin
    changing.use(change.after)
    try:
        done = changing.ctl("exec", "c", "sh", "-c", "echo hello; exit 3")
        assert (done.returncode, done.stdout) == (3, b"hello\n")
        assert [row["id"] for row in tasks(changing).values()] == ["c"]
        version = json.loads(changing.ctl("version", "--format", "json", check=True).stdout)
        assert version["client"]["version"] != version["server"]["version"]
        changing.ctl("rm", "-f", "c", check=True)
    finally:
        changing.use(manager)
    assert BIN in change
