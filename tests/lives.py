"""Lives of containers under faults: calls that notice when nobody will answer, and what must hold.

`ask` gives up as soon as the manager is dead or stopped or a shim is stopped, so that a sweep over
fault points never waits for a timeout. `check_history` judges the event log as a reader of it
would: it knows the order that clients are promised, not how it is kept.
"""

import os
import resource
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from lighter.proto import errors
from tests import census
from tests.client import Client
from tests.harness import Lighterd, await_that, settled
from tests.processes import with_title

NO_STDIO = {"stdin": "", "stdout": "", "stderr": "", "rows": 0, "cols": 0}
SIGKILL = 9
ANSWER_S = 20.0
# In which a list is there that waits for no shim: who waits for one waits 5 s (reach.RETURN_S).
LISTED_S = 4.0
SETTLED_S = 30.0
_SLICE_MS = 100


class NoAnswer(Exception):
    """The call will not be answered: `who` is "manager" or "shim", `how` "dead" or "stopped"."""

    def __init__(self, who: str, how: str, pid: int) -> None:
        super().__init__(f"{who} {pid} is {how}")
        self.who, self.how, self.pid = who, how, pid


def process_state(pid: int) -> str:
    """The letter of proc_pid_stat(5), "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


def hold_still(pid: int) -> None:
    """SIGSTOP, until it has stopped: what runs when the signal comes goes on until it is seen."""
    os.kill(pid, signal.SIGSTOP)
    await_that(lambda: process_state(pid) in ("T", ""), SETTLED_S, f"{pid} has stopped")


def await_handler(pid: int, signum: int) -> None:
    """Until a container's init handles or ignores the signal: before that, it heeds none."""
    await_that(
        lambda: is_handled(Path(f"/proc/{pid}/status").read_text(), signum),
        SETTLED_S,
        f"{pid} has a handler for signal {signum}",
    )


def is_handled(status: str, signum: int) -> bool:
    """By the text of proc_pid_status(5). What runc is until it becomes the program handles all."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    mask = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
    return not fields["Name"].strip().startswith("runc") and bool(mask >> (signum - 1) & 1)


def look(lighterd: Lighterd, but: Collection[int] = ()) -> None:
    """Raise NoAnswer when the manager is dead or stopped, or a shim, `but` these, is stopped."""
    state = process_state(lighterd.pid)
    if state in ("", "Z", "X", "T"):
        raise NoAnswer("manager", "stopped" if state == "T" else "dead", lighterd.pid)
    for pid in lighterd.shims():
        if pid not in but and process_state(pid) == "T":
            raise NoAnswer("shim", "stopped", pid)


def ask(
    lighterd: Lighterd,
    call: str,
    namespace: str = "default",
    *,
    but: Collection[int] = (),
    **body: Any,
) -> Any:
    """The answer to "service.method", which needs none of the shims `but` these.

    Raises the error that was answered, or NoAnswer.
    """
    service, _, method = call.partition(".")
    end = time.monotonic() + ANSWER_S
    while True:
        try:
            client = Client(lighterd.address, namespace, timeout_s=0.5)
        except (errors.DeadlineExceeded, zmq.Again):
            look(lighterd, but)
            assert time.monotonic() < end, "the manager lives and does not say welcome"
            continue
        with client:
            poller = zmq.Poller()
            poller.register(client.socket, zmq.POLLIN)
            try:
                stream = client.stream(service, method, timeout_s=ANSWER_S, **body)
            except zmq.Again:  # it has gone between welcome and request
                look(lighterd, but)
                continue
            while not poller.poll(_SLICE_MS):
                look(lighterd, but)
                assert time.monotonic() < end, f"{call}: no answer in {ANSWER_S} s"
            for _ in stream:
                raise AssertionError(f"{call} answers with a stream")
            return stream.result


def define(lighterd: Lighterd, image: str, container: str, *command: str, **options: Any) -> None:
    ask(lighterd, "containers.create", id=container, image=image, args=list(command), **options)


def begin(lighterd: Lighterd, image: str, container: str, *command: str, **options: Any) -> int:
    """Define a container and start its task; returns init's pid."""
    define(lighterd, image, container, *command, **options)
    ask(lighterd, "tasks.create", id=container, **NO_STDIO)
    pid: int = ask(lighterd, "tasks.start", id=container)["pid"]
    return pid


@contextmanager
def without_descriptors(lighterd: Lighterd) -> Iterator[None]:
    """While the block runs, the manager can open no file; nothing can be asked of it either."""
    before = resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE, before)


def leave_delete_to_runtime(lighterd: Lighterd, container: str) -> None:
    """Let the runtime's state of a container look as if it were not runc's."""
    (lighterd.state / "runc" / "default" / container / "other").touch()


def task(lighterd: Lighterd, container: str, but: Collection[int] = ()) -> dict[str, Any]:
    """The task as it is listed; {"status": None} when it is not."""
    listed = ask(lighterd, "tasks.list", but=but)["tasks"]
    return next((row for row in listed if row["id"] == container), {"status": None})


def await_task(lighterd: Lighterd, container: str, status: str | None) -> dict[str, Any]:
    await_that(
        lambda: task(lighterd, container)["status"] == status, 20, f"{container} is {status}"
    )
    return task(lighterd, container)


def workers(lighterd: Lighterd) -> list[int]:
    return with_title(f"lighter-worker --instance {lighterd.instance}")


def await_worker(lighterd: Lighterd) -> int:
    """The one that waits for more. Others come and go: of the task that was deleted, of a snapshot
    that is removed."""
    seen: list[list[int]] = []

    def waits() -> bool:
        seen.append(workers(lighterd))
        return len(seen) > 5 and len(seen[-1]) == 1 and all(one == seen[-1] for one in seen[-5:])

    await_that(waits, 20, "a worker waits for more")
    return seen[-1][0]


def history(lighterd: Lighterd) -> list[dict[str, Any]]:
    """All events of tasks in this test so far, oldest first."""
    with lighterd.client("") as client:
        since = lighterd.first_event
        stream = client.stream("events", "subscribe", since=since, follow=False)
        return [item for item in stream if item["topic"].startswith("/tasks/")]


INIT_ORDER = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
EXEC_ORDER = ["/tasks/exec-started", "/tasks/exit"]


def check_history(events: list[dict[str, Any]], alive: frozenset[str] = frozenset()) -> list[str]:
    """What the events of tasks say that must not be; none when all is well.

    Per container, between one delete and the next: the create first, init's events at most once
    each and in order, an exit of each init but those in `alive`; of each exec one start and then
    one exit, neither after its init's exit.
    """
    lives: dict[str, list[list[dict[str, Any]]]] = {}
    for event in events:
        per_container = lives.setdefault(event["event"]["container_id"], [[]])
        per_container[-1].append(event)
        if event["topic"] == "/tasks/delete":
            per_container.append([])
    problems = []
    for container, separate in lives.items():
        for number, life in enumerate(separate):
            last = number == len(separate) - 1
            for problem in _problems_of_life(life, last and container in alive):
                problems.append(f"{container}, life {number}: {problem}")
    return problems


def _problems_of_life(life: list[dict[str, Any]], alive: bool) -> list[str]:
    problems = []
    told = [(event["topic"], event["event"].get("exec_id", "")) for event in life]
    init = [topic for topic, exec_id in told if not exec_id and topic in INIT_ORDER]
    if init != [topic for topic in INIT_ORDER if topic in init]:
        problems.append(f"init's events are {init}")
    if told and told[0] != ("/tasks/create", ""):
        problems.append(f"the first event is {told[0]}")
    if told and "/tasks/exit" not in init and not alive:
        problems.append("no exit")
    after = told[told.index(("/tasks/exit", "")) :] if "/tasks/exit" in init else []
    for exec_id in {exec_id for _, exec_id in told} - {""}:
        topics = [topic for topic, of in told if of == exec_id and topic in EXEC_ORDER]
        whole = EXEC_ORDER[:1] if alive and len(topics) == 1 else EXEC_ORDER
        if topics and topics != whole:
            problems.append(f"exec {exec_id}: {topics}")
        if late := [topic for topic, of in after if of == exec_id]:
            problems.append(f"exec {exec_id} after its container's exit: {late}")
    return problems


def leftovers(lighterd: Lighterd, but: Collection[str] = ()) -> None:
    """Wait until nothing of a container is left on disk or running, `but` these mounts.

    Raises AssertionError.
    """

    def look() -> list[str]:
        return [
            *lighterd.left_on_disk(),
            *(f"shim {pid}" for pid in lighterd.shims()),
            *(
                point
                for point in census.marked_mounts(lighterd.owners_of_this())
                if point not in but
            ),
        ]

    settled(look)


def kill_stopped(pid: int) -> None:
    """SIGKILL acts on a stopped process at once; returns when it is gone or a zombie."""
    os.kill(pid, SIGKILL)
    await_that(lambda: process_state(pid) in ("", "Z", "X"), 30, f"{pid} is dead")
