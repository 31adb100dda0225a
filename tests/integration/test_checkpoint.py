"""Checkpoints: by CRIU where it works, told why where it does not, and by a stand-in everywhere."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.daemon.tasks import criu
from tests import lives
from tests.harness import Lighterd, await_that

COUNTS = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def test_a_checkpoint_by_criu_or_the_reason_why_not(lighterd: Lighterd, busybox: str) -> None:
    """A container goes on counting where it was; on a kernel that CRIU cannot use, it says so."""
    assert shutil.which("criu"), "criu is not installed"
    lighterd.ctl("run", "-d", busybox, "c", "sh", "-c", COUNTS, check=True)
    await_that(lambda: _numbers(lighterd)[-1:] > [3], 20, "it counts")
    directory = lighterd.base / "share" / "image"
    live = lighterd.ctl("tasks", "checkpoint", "--image-path", str(directory), "c", timeout=60)
    if live.returncode and not os.environ.get("CRIU_WORKS"):
        said = live.stderr.decode()
        assert said.startswith("ctl: checkpoint task c: criu ") and said.count("\n") == 1, said
        assert len(said) > len("ctl: checkpoint task c: criu \n")
        before = _numbers(lighterd)[-1]
        await_that(lambda: _numbers(lighterd)[-1] > before, 20, "it was left alone")
        return
    assert live.returncode == 0, live.stderr
    (last := lighterd.base / "share" / "last").mkdir()
    lighterd.ctl("tasks", "checkpoint", "--exit", "--image-path", str(last), "c", check=True)
    with lighterd.client() as client:
        client.call("tasks", "wait", id="c", exec_id="")
    stopped_at = _numbers(lighterd)[-1]
    lighterd.ctl("tasks", "delete", "c", check=True)
    lighterd.ctl("tasks", "start", "-d", "--checkpoint", str(last), "c", check=True)
    await_that(lambda: _numbers(lighterd)[-1] > stopped_at, 20, "it counts on")
    found = _numbers(lighterd)
    assert found[: found.index(stopped_at) + 2] == list(range(1, stopped_at + 2))


def _numbers(lighterd: Lighterd) -> list[int]:
    return [int(word) for word in lighterd.ctl("logs", "c").stdout.split()] or [0]


# As runc, but that a checkpoint is a file and a restore another start: what is around CRIU.
STAND_IN = """#!/bin/bash
root=$2; options=("${@:1:6}"); verb=$7
if [[ $verb == checkpoint ]]; then
    for word in "${@:8}"; do
        [[ $previous == --image-path ]] && image=$word
        [[ $word == --leave-running ]] && live=1
        previous=$word
    done
    echo "$@" >"$image/inventory.img"
    [[ $live ]] || exec "$RUNC" --root "$root" kill "$previous" KILL
elif [[ $verb == restore ]]; then
    words=()
    shift 7
    while [[ $# -gt 0 ]]; do
        case $1 in
        --detach) ;;
        --image-path) cp "$2/inventory.img" "$2/restored"; shift;;
        --work-path) shift;;
        *) words+=("$1");;
        esac
        shift
    done
    "$RUNC" "${options[@]}" create "${words[@]}" && exec "$RUNC" --root "$root" start "${words[-1]}"
else
    exec "$RUNC" "$@"
fi
"""


def with_stand_in(make_lighterd: Callable[..., Lighterd], directory: Path) -> Lighterd:
    """A running manager whose runtime stands in for CRIU, with the test image."""
    runc = shutil.which("runc")
    assert runc
    program = directory / "runtime"
    program.write_text(STAND_IN.replace("$RUNC", runc))
    program.chmod(0o755)
    config = f'version = 3\n[plugins."io.lighter.v1".runtimes.runc]\npath = "{program}"\n'
    lighterd = make_lighterd(config=config).start()
    lighterd.import_busybox()
    return lighterd


@pytest.fixture
def standing_in(make_lighterd: Callable[..., Lighterd], tmp_path: Path) -> Lighterd:
    return with_stand_in(make_lighterd, tmp_path)


def test_what_is_around_criu(standing_in: Lighterd) -> None:
    """States, streams, events and errors of a checkpoint and of a restore, with a stand-in."""
    lighterd = standing_in
    image = "docker.io/library/busybox:test"
    script = "echo began; read word; echo got $word"
    lighterd.ctl("run", "-d", "-i", "--name", "c", image, "sh", "-c", script, check=True)
    share = lighterd.base / "share"
    live, last = share / "live", share / "last"
    lighterd.ctl("tasks", "checkpoint", "--image-path", str(live), "c", check=True)
    assert "--leave-running" in (live / "inventory.img").read_text()
    with lighterd.client() as client:
        assert client.call("tasks", "get", id="c")["task"]["status"] == "running"
        again = lighterd.ctl("tasks", "checkpoint", "--image-path", str(live), "c")
        assert again.returncode == 1 and b"it is not empty" in again.stderr
        lighterd.ctl("tasks", "checkpoint", "--exit", "--image-path", str(last), "c", check=True)
        assert client.call("tasks", "wait", id="c", exec_id="")["exit_status"] == 137
        stopped = lighterd.ctl("tasks", "checkpoint", "--image-path", str(share / "x"), "c")
        assert stopped.returncode == 1 and b"it is stopped" in stopped.stderr
        lighterd.ctl("tasks", "delete", "c", check=True)
        wrong = lighterd.ctl("tasks", "start", "-d", "--checkpoint", str(share / "x"), "c")
        assert wrong.returncode == 1 and b"there is no checkpoint" in wrong.stderr
        done = lighterd.ctl("tasks", "start", "--checkpoint", str(last), "c", input=b"word\n")
        assert done.stdout == b"began\ngot word\n" and done.returncode == 0, done.stderr
        assert (last / "restored").exists()
        topics = [
            event["topic"] for event in client.stream("events", "subscribe", since=0, follow=False)
        ]
    assert topics.count("/tasks/checkpointed") == 2
    lighterd.ctl("tasks", "start", "-d", "--checkpoint", str(last), "c", check=True)
    lighterd.kill9()
    lighterd.start()
    with lighterd.client() as client:
        await_that(
            lambda: client.call("tasks", "get", id="c")["task"]["status"] == "running",
            20,
            "adopted",
        )


def test_f42_a_shim_killed_in_a_checkpoint_is_a_lost_one(standing_in: Lighterd) -> None:
    lighterd = standing_in
    image = "docker.io/library/busybox:test"
    lighterd.restart(FAULT="shim.checkpoint-asked:abort")
    run = ("run", "-d", "--name", "c", image, "sleep", "1000")
    lighterd.ctl(*run, check=True)
    directory = lighterd.base / "share" / "image"
    checkpoint = ("tasks", "checkpoint", "--image-path", str(directory), "c")
    failed = lighterd.ctl(*checkpoint)
    assert failed.returncode == 1 and failed.stderr.count(b"\n") == 1, failed.stderr
    row = lives.await_task(lighterd, "c", "stopped")
    assert (row["cause"], row["exit_status"]) == ("lost-shim", 137)
    assert not directory.exists() or not list(directory.iterdir())
    lighterd.ctl("rm", "c", check=True)
    lighterd.restart()
    lighterd.ctl(*run, check=True)
    lighterd.ctl(*checkpoint, check=True)


def test_the_reason_is_the_first_that_criu_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.1) Warn  (criu/cr-dump.c:1): x\n"
        "(00.2) Error (criu/sk-inet.c:188): Connected TCP socket\n"
        "(00.3) Error (criu/cr-dump.c:1781): Dumping FAILED.\n"
    )
    assert criu.why_not(str(log)) == "criu says: (criu/sk-inet.c:188): Connected TCP socket"
    monkeypatch.setattr(criu, "RUNTIME_PATH", str(tmp_path))
    assert criu.why_not(str(log)) == "criu is not installed, which runc needs for it"
