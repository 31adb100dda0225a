"""Output, input and ends of real containers: bytes, order, exit codes, whatever happens when."""

import hashlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from tests import cgroups
from tests.client import Client
from tests.harness import Lighterd, await_that
from tests.integration.test_adoption import shim_of

pytestmark = pytest.mark.shared_lighterd

NO_STDIO = {"stdin": "", "stdout": "", "stderr": ""}


@pytest.fixture
def client(lighterd: Lighterd, busybox: str) -> Iterator[Client]:
    """A connected client of a manager that has the test image."""
    with lighterd.client() as client:
        yield client


def create(client: Client, image: str, name: str, *args: str, **options: Any) -> None:
    """A container, with a log unless `options` say otherwise."""
    body: dict[str, Any] = {
        "id": name,
        "image": image,
        "args": list(args),
        "env": [],
        "cwd": "",
        "user": "",
        "terminal": False,
        "mounts": [],
        "net_host": False,
        "read_only": False,
        "hostname": "",
        "labels": {},
        "snapshotter": "",
        "privileged": False,
        "cap_add": [],
        "cap_drop": [],
        "seccomp": "default",
        "allow_new_privs": False,
        "runtime": "",
        "with_ns": {},
        "auto_remove": False,
        "stdin_open": False,
        "stop_signal": "",
        "log": {"driver": "file", "max_size": 0, "max_file": 1},
    }
    client.call("containers", "create", **{**body, **options})


def task(client: Client, name: str, **stdio: str) -> int:
    body = {**NO_STDIO, **stdio}
    return int(client.call("tasks", "create", id=name, rows=0, cols=0, **body)["pid"])


def start(client: Client, name: str) -> None:
    client.call("tasks", "start", id=name)


def wait(client: Client, name: str, exec_id: str = "") -> dict[str, Any]:
    ended: dict[str, Any] = client.call("tasks", "wait", id=name, exec_id=exec_id, timeout_s=60)
    return ended


def kill(client: Client, name: str, signum: int = signal.SIGKILL, **body: Any) -> None:
    client.call(
        "tasks", "kill", **{"id": name, "exec_id": "", "signal": signum, "all": False, **body}
    )


def run_exec(client: Client, name: str, exec_id: str, *args: str, **stdio: str) -> int:
    body = {"args": list(args), "env": [], "cwd": "", "user": "", "terminal": False}
    body |= {"privileged": False, "rows": 0, "cols": 0, **NO_STDIO, **stdio}
    return int(client.call("tasks", "exec", id=name, exec_id=exec_id, **body)["pid"])


def log_of(client: Client, name: str, stream: int = 1) -> bytes:
    items = client.stream("logs", "read", id=name, follow=False, tail=None, since=None)
    return b"".join(item["data"] for item in items if item["stream"] == stream)


def events_of(lighterd: Lighterd) -> list[tuple[str, dict[str, Any]]]:
    return [(event["topic"], event["event"]) for event in lighterd.events()]


@contextmanager
def reading(path: Path) -> Iterator[list[bytes]]:
    """Read a FIFO to its end in a thread; the parts."""
    parts: list[bytes] = []

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while part := file.read(1 << 20):
                parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    yield parts
    thread.join(60)
    assert not thread.is_alive(), "the FIFO has no end"


def test_8_mib_then_exit_reach_the_log_and_a_slow_reader(
    busybox: str, client: Client, tmp_path: Path
) -> None:
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    script = "head -c 8388608 /dev/urandom | tee /dev/stderr"
    create(client, busybox, "c", "sh", "-c", script)
    with reading(fifo) as parts:
        task(client, "c", stdout=str(fifo))
        start(client, "c")
        assert wait(client, "c")["exit_status"] == 0
    digests = {
        hashlib.sha256(data).digest()
        for data in (b"".join(parts), log_of(client, "c", 1), log_of(client, "c", 2))
    }
    assert len(b"".join(parts)) == 8388608
    assert len(digests) == 1


def test_a_reader_that_comes_after_the_end_gets_everything(
    busybox: str, client: Client, tmp_path: Path
) -> None:
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    create(client, busybox, "c", "seq", "100000", log={"driver": "none"})
    task(client, "c", stdout=str(fifo))
    start(client, "c")
    assert wait(client, "c")["exit_status"] == 0, "no reader, and yet it ends"
    with reading(fifo) as parts:
        pass
    assert b"".join(parts) == b"".join(b"%d\n" % n for n in range(1, 100_001))


def test_stdin_stays_open_across_attaches_and_restarts(
    lighterd: Lighterd, busybox: str, client: Client
) -> None:
    create(client, busybox, "c", "cat", stdin_open=True)
    task(client, "c")
    start(client, "c")
    for number, word in enumerate((b"one ", b"two ")):
        fifo = lighterd.base / f"in{number}"
        os.mkfifo(fifo)
        client.call("tasks", "attach", id="c", exec_id="", stdin=str(fifo), stdout="", stderr="")
        with fifo.open("wb", buffering=0) as file:
            file.write(word)
        await_that(lambda word=word: log_of(client, "c").endswith(word), 30, "cat has it")
    lighterd.kill9()
    lighterd.start()
    with lighterd.client() as again:
        await_that(lambda: log_of(again, "c") == b"one two ", 30, "the log is as before")
        again.call("tasks", "close_stdin", id="c", exec_id="")
        assert wait(again, "c")["exit_status"] == 0


def test_f45_lives_of_true_keep_their_order_and_code(
    lighterd: Lighterd, busybox: str, client: Client
) -> None:
    """A twentieth of the long run; each topic exactly once per container, in order."""
    for number in range(25):
        create(client, busybox, f"c{number}", "sh", "-c", f"exit {number}")
        task(client, f"c{number}")
        start(client, f"c{number}")
    for number in range(25):
        assert wait(client, f"c{number}")["exit_status"] == number
        client.call("tasks", "delete", id=f"c{number}", exec_id="", force=False)
    seen: dict[str, list[str]] = {}
    for topic, body in events_of(lighterd):
        if topic.startswith("/tasks/"):
            seen.setdefault(body["container_id"], []).append(topic.removeprefix("/tasks/"))
    assert seen == {f"c{n}": ["create", "start", "exit", "delete"] for n in range(25)}


def test_f45_a_storm_of_short_execs_loses_no_exit(
    lighterd: Lighterd, busybox: str, client: Client
) -> None:
    create(client, busybox, "c", "sleep", "1000")
    task(client, "c")
    start(client, "c")
    problems: list[str] = []

    def storm(base: int) -> None:
        with lighterd.client() as mine:
            for number in range(base, base + 15):
                run_exec(mine, "c", f"x{number}", "sh", "-c", f"exit {number % 256}")
                ended = wait(mine, "c", f"x{number}")
                if ended["exit_status"] != number % 256:
                    problems.append(f"{number}: {ended}")

    storms = [threading.Thread(target=storm, args=(base,)) for base in (0, 100, 200, 300)]
    for thread in storms:
        thread.start()
    for thread in storms:
        thread.join()
    assert problems == []
    counts = Counter(
        (topic, body["exec_id"]) for topic, body in events_of(lighterd) if body.get("exec_id")
    )
    assert len(counts) == 3 * 60
    assert set(counts.values()) == {1}


def test_f46_sigkill_ends_a_paused_task(busybox: str, client: Client) -> None:
    create(client, busybox, "c", "sleep", "1000")
    pid = task(client, "c")
    start(client, "c")
    with cgroups.thawed_after(pid):
        client.call("tasks", "pause", id="c")
        kill(client, "c", signal.SIGUSR1)  # waits for the thaw; the stop signal would bring that
        assert cgroups.is_frozen(pid)
        kill(client, "c")
        assert wait(client, "c")["exit_status"] == 137


def test_f46_a_paused_task_is_deleted_by_force(busybox: str, client: Client) -> None:
    create(client, busybox, "c", "sleep", "1000")
    pid = task(client, "c")
    start(client, "c")
    with cgroups.thawed_after(pid):
        client.call("tasks", "pause", id="c")
        assert cgroups.is_frozen(pid)
        client.call("tasks", "delete", id="c", exec_id="", force=True)
    with pytest.raises(errors.NotFound):
        client.call("tasks", "get", id="c")


def test_kill_all_reaches_every_process(busybox: str, client: Client) -> None:
    child = "trap 'echo child; exit' USR1; echo up; while :; do sleep 1; done"
    script = f"trap 'wait; exit 3' USR1; sh -c \"{child}\" & wait"
    create(client, busybox, "c", "sh", "-c", script)
    task(client, "c")
    start(client, "c")
    await_that(lambda: b"up" in log_of(client, "c"), 30, "both traps are set")
    kill(client, "c", signal.SIGUSR1, all=True)
    assert wait(client, "c")["exit_status"] == 3
    assert log_of(client, "c") == b"up\nchild\n"


def test_a_created_task_is_deleted_without_a_start(
    lighterd: Lighterd, busybox: str, client: Client
) -> None:
    create(client, busybox, "c", "sleep", "1000")
    pid = task(client, "c")
    client.call("tasks", "delete", id="c", exec_id="", force=False)
    assert not Path(f"/proc/{pid}").exists()
    topics = [topic for topic, body in events_of(lighterd) if topic.startswith("/tasks/")]
    assert topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


def test_a_second_kill_finds_nothing(busybox: str, client: Client) -> None:
    create(client, busybox, "c", "sleep", "1000")
    task(client, "c")
    start(client, "c")
    kill(client, "c")
    assert wait(client, "c")["exit_status"] == 137
    with pytest.raises((errors.NotFound, errors.FailedPrecondition)):
        kill(client, "c")


def test_init_killed_between_create_and_start(busybox: str, client: Client) -> None:
    create(client, busybox, "c", "sleep", "1000")
    os.kill(task(client, "c"), signal.SIGKILL)
    assert wait(client, "c")["exit_status"] == 137
    with pytest.raises(errors.FailedPrecondition):
        start(client, "c")


def test_a_background_child_ends_with_its_container(busybox: str, client: Client) -> None:
    """It holds stdout; it is killed with the cgroup, so the delete does not wait for it."""
    create(client, busybox, "c", "sh", "-c", "sleep 1000 & echo done")
    task(client, "c")
    start(client, "c")
    assert wait(client, "c")["exit_status"] == 0
    client.call("tasks", "delete", id="c", exec_id="", force=False, timeout_s=9.5)


@pytest.mark.parametrize(
    "rounds", [20, pytest.param(100, marks=[pytest.mark.soak])], ids="{} rounds".format
)
def test_sec_76_oom_kills_the_container_and_is_told(
    lighterd: Lighterd, busybox: str, client: Client, rounds: int
) -> None:
    for number in range(rounds):
        name = f"c{number}"
        create(client, busybox, name, "sh", "-c", "tail /dev/zero")
        pid = task(client, name)
        members = cgroups.members(cgroups.of_process(pid, "memory"))
        assert pid in members
        assert shim_of(lighterd, name) not in members
        cgroups.limit_memory(pid, 16 << 20)
        start(client, name)
        ended = wait(client, name)
        assert ended["exit_status"] == 137
        assert ended["cause"] == "oom"
        # Once each, with a cause that only a shim that outlived it can tell.
        told = [(t, body) for t, body in events_of(lighterd) if body.get("container_id") == name]
        assert [topic for topic, _body in told].count("/tasks/oom") == 1
        assert [topic for topic, _body in told].count("/tasks/exit") == 1
        client.call("tasks", "delete", id=name, exec_id="", force=False)
        client.call("containers", "delete", id=name, force=False)
