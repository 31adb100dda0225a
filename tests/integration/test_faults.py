"""Runtimes that misbehave, repeated calls, names at their limits, events across restarts."""

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.tasks.creation import AT_ONCE
from lighter.proto import errors
from tests import lives
from tests.harness import Lighterd, await_that
from tests.lives import NO_STDIO, ask

RUNTIME_S = 120  # runtimes.runc.timeout_s
MAX_QUOTE = 4096 + 400  # what the runtime said last, and who said it


def runtime(lighterd: Lighterd, script: str, mode: int = 0o755) -> str:
    """A program in runc's place."""
    path = lighterd.base / "runtime"
    path.write_text(script)
    path.chmod(mode)
    return str(path)


TO_LOG = "#!/bin/sh\nwhile [ $1 != --log ]; do shift; done\n"
RUNTIMES = {
    "ends silently": "#!/bin/sh\nexit 0\n",
    "fails silently": "#!/bin/sh\nexit 1\n",
    "says megabytes": "#!/bin/sh\nhead -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1\n",
    "logs megabytes": (
        TO_LOG + '(printf \'{"level":"error","msg":"\'\n'
        'head -c 50000 /dev/zero | tr "\\0" x; echo \'"}\') >$2\nexit 1\n'
    ),
    "logs garbage": TO_LOG + "head -c 99999 /dev/urandom >$2\nexit 1\n",
    "crashes": "#!/bin/sh\nkill -SEGV $$\n",
    "is no program": "neither ELF nor a script\n",
    "writes a false pid": (
        "#!/bin/sh\nwhile [ $1 != --pid-file ] && [ $# -gt 1 ]; do shift; done\necho x >$2\n"
    ),
}


@pytest.mark.parametrize("how", RUNTIMES)
def test_f44_a_runtime_that_fails_leaves_an_error_and_nothing_else(
    lighterd: Lighterd, busybox: str, how: str
) -> None:
    program = runtime(lighterd, RUNTIMES[how])
    lives.define(lighterd, busybox, "c", "true", runtime=program)
    for _ in range(2):
        with pytest.raises(errors.LighterError) as refused:
            ask(lighterd, "tasks.create", id="c", **NO_STDIO)
        assert refused.value.code in ("failed-precondition", "unavailable", "internal")
        assert program in refused.value.message or "create task c: " in refused.value.message
        assert len(refused.value.message) < MAX_QUOTE
        assert lives.task(lighterd, "c")["status"] is None
    ask(lighterd, "containers.delete", id="c", force=False)
    lives.leftovers(lighterd)


def test_f44_a_pid_that_a_runtime_makes_up_is_not_killed(lighterd: Lighterd, busybox: str) -> None:
    """An exec whose pid file names somebody else's process fails, and harms nobody."""
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        script = (
            '#!/bin/sh\ncase "$*" in\n'
            '*" exec "*) while [ "$1" != --pid-file ]; do shift; done\n'
            f'printf {bystander.pid} >$2; exit 0;;\nesac\nexec runc "$@"\n'
        )
        program = runtime(lighterd, script)
        lives.define(lighterd, busybox, "c", "sleep", "1000", runtime=program)
        ask(lighterd, "tasks.create", id="c", **NO_STDIO)
        ask(lighterd, "tasks.start", id="c")
        process = {"args": ["true"], "env": [], "cwd": "/", "terminal": False}
        try:
            with pytest.raises(errors.LighterError, match="no child of this shim"):
                ask(lighterd, "tasks.exec", id="c", exec_id="e", **process, **NO_STDIO)
            assert bystander.poll() is None, "it was killed"
        finally:
            bystander.kill()


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "not executable"])
def test_f44_a_runtime_that_cannot_be_run(lighterd: Lighterd, busybox: str, missing: bool) -> None:
    program = "/no/such/runtime" if missing else runtime(lighterd, "", 0o644)
    with pytest.raises(errors.LighterError, match="runtime"):
        lives.define(lighterd, busybox, "c", "true", runtime=program)
        ask(lighterd, "tasks.create", id="c", **NO_STDIO)
    assert lives.task(lighterd, "c")["status"] is None


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
@pytest.mark.parametrize("verb", ["create", "start", "exec"])
def test_f42_the_shim_dies_and_the_runtime_goes_on(
    lighterd: Lighterd, busybox: str, verb: str, terminal: bool
) -> None:
    program = runtime(
        lighterd,
        '#!/bin/sh\ncase " $* " in *" ' + verb + ' "*) kill -9 $PPID;; esac\nexec runc "$@"\n',
    )
    lives.define(lighterd, busybox, "c", "sleep", "1000", runtime=program, terminal=terminal)
    with pytest.raises(errors.Unavailable):
        ask(lighterd, "tasks.create", id="c", **NO_STDIO)
        ask(lighterd, "tasks.start", id="c")
        which = {"id": "c", "exec_id": "x", "terminal": terminal}
        ask(lighterd, "tasks.exec", args=["sleep", "1000"], **which, **NO_STDIO)
    if verb == "create":
        assert lives.task(lighterd, "c")["status"] is None
    else:
        row = lives.await_task(lighterd, "c", "stopped")
        # With the shim its end of the terminal is gone, and the SIGHUP may be there before us.
        told = {(137, "lost-shim"), *([(255, "unknown")] if terminal else [])}
        assert (row["exit_status"], row["cause"]) in told
        ask(lighterd, "tasks.delete", id="c", exec_id="", force=False)
    ask(lighterd, "containers.delete", id="c", force=False)
    lives.leftovers(lighterd)
    assert not lives.check_history(lives.history(lighterd))
    lives.begin(lighterd, busybox, "c", "true")
    assert ask(lighterd, "tasks.wait", id="c", exec_id="")["exit_status"] == 0


def test_f44_a_runtime_that_hangs_holds_nobody_else(lighterd: Lighterd, busybox: str) -> None:
    gate = lighterd.base / "gate"
    os.mkfifo(gate)
    slow = runtime(
        lighterd, f'#!/bin/sh\ncase " $* " in *" create "*) : <{gate};; esac\nexec runc "$@"\n'
    )
    lives.define(lighterd, busybox, "slow", "sleep", "1000", runtime=slow)
    with lighterd.client() as waiting:
        stream = waiting.stream("tasks", "create", id="slow", **NO_STDIO)
        began = time.monotonic()
        lives.begin(lighterd, busybox, "other", "true")
        assert ask(lighterd, "tasks.wait", id="other", exec_id="")["exit_status"] == 0
        assert lives.task(lighterd, "slow")["status"] is None
        with pytest.raises(errors.AlreadyExists):
            ask(lighterd, "tasks.create", id="slow", **NO_STDIO)
        with pytest.raises(errors.FailedPrecondition):
            ask(lighterd, "containers.delete", id="slow", force=True)
        assert time.monotonic() - began < 15  # the runtime hangs for ever
        gate.write_text("")
        list(stream)
        assert lives.task(lighterd, "slow")["pid"] == stream.result["pid"]


def test_f44_as_many_as_are_made_at_once_hang(lighterd: Lighterd, busybox: str) -> None:
    gate, hung = lighterd.base / "gate", lighterd.base / "hung"
    os.mkfifo(gate)
    slow = runtime(
        lighterd,
        f'#!/bin/sh\ncase " $* " in *" create "*) echo >>{hung}; : <{gate};; esac\n'
        'exec runc "$@"\n',
    )
    names = [f"slow{number}" for number in range(AT_ONCE)]
    for name in names:
        lives.define(lighterd, busybox, name, "sleep", "1000", runtime=slow)
    with ExitStack() as clients:
        streams = [
            clients.enter_context(lighterd.client()).stream(
                "tasks", "create", timeout_s=RUNTIME_S, id=name, **NO_STDIO
            )
            for name in names
        ]
        await_that(
            lambda: hung.exists() and hung.read_text().count("\n") == AT_ONCE,
            30,
            "all of them hang",
        )
        lives.define(lighterd, busybox, "other", "true")
        with lighterd.client() as client:  # the runtime's deadline is theirs
            client.call("tasks", "create", timeout_s=RUNTIME_S / 2, id="other", **NO_STDIO)
        ask(lighterd, "tasks.start", id="other")
        assert ask(lighterd, "tasks.wait", id="other", exec_id="")["exit_status"] == 0
        assert hung.read_text().count("\n") == AT_ONCE
        gate.write_text("")
        for stream in streams:
            list(stream)
    for name in names:
        ask(lighterd, "containers.delete", id=name, force=True)


def test_a_create_that_is_given_up_is_undone(lighterd: Lighterd, busybox: str) -> None:
    """F60: what succeeds late and was given up is undone."""
    gate = lighterd.base / "gate"
    os.mkfifo(gate)
    slow = runtime(
        lighterd, f'#!/bin/sh\ncase " $* " in *" create "*) : <{gate};; esac\nexec runc "$@"\n'
    )
    lives.define(lighterd, busybox, "c", "sleep", "1000", runtime=slow)
    with lighterd.client() as client:
        stream = client.stream("tasks", "create", id="c", **NO_STDIO)
        await_that(lambda: lighterd.shims(), 30, "its shim runs")
        stream.cancel()
        gate.write_text("")
        with pytest.raises(errors.Canceled):
            list(stream)
    assert lives.task(lighterd, "c")["status"] is None
    ask(lighterd, "containers.delete", id="c", force=False)
    lives.leftovers(lighterd)
    assert not lives.check_history(lives.history(lighterd))


def test_f75_a_call_that_is_repeated_has_no_second_effect(lighterd: Lighterd, busybox: str) -> None:
    share = lighterd.base / "share"
    share.mkdir()
    mount = {"type": "bind", "source": str(share), "destination": "/share", "options": ["rbind"]}
    once = "echo >>/share/count"
    which = {"id": "c", "exec_id": "x"}
    run_sleep = ["sh", "-c", f"{once}; exec sleep 1000"]
    calls: list[tuple[str, dict[str, Any], type[errors.LighterError]]] = [
        (
            "containers.create",
            {"id": "c", "image": busybox, "args": run_sleep, "mounts": [mount]},
            errors.AlreadyExists,
        ),
        ("tasks.create", {"id": "c", **NO_STDIO}, errors.AlreadyExists),
        ("tasks.start", {"id": "c"}, errors.FailedPrecondition),
        (
            "tasks.exec",
            {"args": ["sh", "-c", once], **which, **NO_STDIO},
            errors.AlreadyExists,
        ),
        ("tasks.delete", {**which, "force": False}, errors.NotFound),
        (
            "tasks.kill",
            {"id": "c", "exec_id": "", "signal": signal.SIGKILL, "all": False},
            errors.FailedPrecondition,
        ),
        ("tasks.delete", {"id": "c", "exec_id": "", "force": True}, errors.NotFound),
        ("containers.delete", {"id": "c", "force": False}, errors.NotFound),
    ]
    for call, body, error in calls:
        ask(lighterd, call, **body)
        if call == "tasks.exec":
            ask(lighterd, "tasks.wait", **which)
        elif call == "tasks.kill":
            ask(lighterd, "tasks.wait", id="c", exec_id="")
        for restarted in (False, True):
            if restarted:
                lighterd.kill9()
                lighterd.start()
            with pytest.raises(error):
                ask(lighterd, call, **body)
    assert (share / "count").read_text() == "\n\n"
    assert not lives.check_history(lives.history(lighterd))


def test_f77_the_longest_names_work_and_longer_ones_are_refused(
    lighterd: Lighterd, busybox: str
) -> None:
    long = "n" * 76
    image = busybox
    with lighterd.client() as client:
        client.call("namespaces", "create", name=long, labels={})
        client.namespace = long
        with pytest.raises(errors.NotFound):
            client.call("containers", "create", id=long, image=image, args=["true"])
    for bad in (long + "n", "-x", "a b", "..", "ä", "a/b", ""):
        with pytest.raises(errors.InvalidArgument):
            lives.define(lighterd, image, bad, "true")
    for terminal in (False, True):
        lives.define(lighterd, image, long, "sleep", "1000", terminal=terminal)
        ask(lighterd, "tasks.create", id=long, **NO_STDIO)
        ask(lighterd, "tasks.start", id=long)
        which = {"id": long, "exec_id": "x" * 76}
        ask(lighterd, "tasks.exec", args=["true"], terminal=terminal, **which, **NO_STDIO)
        assert ask(lighterd, "tasks.wait", **which)["exit_status"] == 0
        ask(lighterd, "containers.delete", id=long, force=True)
    with lighterd.client() as client:
        client.call("namespaces", "delete", name=long)


def test_f80_a_reader_with_a_cursor_sees_each_event_once_across_restarts(
    lighterd: Lighterd, busybox: str
) -> None:
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                with lighterd.client() as client:
                    since = seen[-1] if seen else 0
                    stream = client.stream(
                        "events", "subscribe", since=since, follow=True, timeout_s=1
                    )
                    for event in stream:
                        seen.append(event["sequence"])
            except Exception:
                continue  # a manager that is away, or the time is over

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(3):
            lives.begin(lighterd, busybox, f"c{n}", "sleep", "1000")
            pid = lives.task(lighterd, f"c{n}")["pid"]
            lighterd.kill9()
            os.kill(pid, lives.SIGKILL)
            await_that(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 30, "it has ended")
            lighterd.start()
            assert ask(lighterd, "tasks.wait", id=f"c{n}", exec_id="")["exit_status"] == 137
        with lighterd.client("") as client:
            stream = client.stream("events", "subscribe", since=0, follow=False)
            wanted = [event["sequence"] for event in stream if event["namespace"] == "default"]
        await_that(lambda: len(seen) >= len(wanted), 20, "the reader has caught up")
    finally:
        stop.set()
        reader.join()
    assert seen == wanted
