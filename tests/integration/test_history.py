"""Recorded histories: clients at work while the manager is killed at random, then a judge.

Each client notes every call with its answer. Names are the clients' own, so what a client was told
about them is everything that was asked of them; the judge compares that with the lists at the end
and with the event log. The method is Jepsen's; the properties are those of the API.
"""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from lighter.proto import errors
from tests import lives
from tests.client import Client
from tests.harness import Lighterd
from tests.lives import NO_STDIO

CALL_S = 5.0
OK, REFUSED, LOST = "ok", "refused", "lost"


@dataclass
class Call:
    """`outcome`: answered, refused with the error code in `result`, or lost: either is true."""

    call: str
    name: str
    began: float
    ended: float
    outcome: str
    result: Any


@dataclass
class Caller(threading.Thread):
    """One client with names of its own, each going through random steps of its life."""

    lighterd: Lighterd
    image: str
    number: int
    seed: int
    until: float
    calls: list[Call] = field(default_factory=list)
    failure: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        choose = random.Random(self.seed)
        try:
            while time.monotonic() < self.until:
                self._step(f"n{self.number}-{choose.randrange(3)}", choose)
        except Exception as error:
            self.failure = f"client {self.number}: {error!r}"

    def _step(self, name: str, choose: random.Random) -> None:
        code = choose.randrange(1, 100)
        exec_id = f"x{len(self.calls)}"
        body: dict[str, Any]
        call, body = choose.choice(
            [
                ("containers.create", {"image": self.image, "args": ["sleep", "1000"]}),
                (
                    "containers.create",
                    {"image": self.image, "args": ["sh", "-c", f"exit {code}"]},
                ),
                ("tasks.create", NO_STDIO),
                ("tasks.start", {}),
                ("tasks.exec", {"exec_id": exec_id, "args": ["true"], **NO_STDIO}),
                ("tasks.kill", {"exec_id": "", "signal": lives.SIGKILL, "all": False}),
                ("tasks.delete", {"exec_id": "", "force": False}),
                ("containers.delete", {"force": choose.random() < 0.5}),
            ]
        )
        began = time.monotonic()
        outcome, result = self._ask(call, {"id": name, **body})
        self.calls.append(Call(call, name, began, time.monotonic(), outcome, result))

    def _ask(self, call: str, body: dict[str, Any]) -> tuple[str, Any]:
        service, _, method = call.partition(".")
        try:
            with Client(self.lighterd.address, timeout_s=CALL_S) as client:
                return OK, client.call(service, method, timeout_s=CALL_S, **body)
        except errors.LighterError as error:
            lost = error.code in ("unavailable", "deadline-exceeded", "canceled")
            return (LOST if lost else REFUSED), error.code
        except OSError:  # zmq.Again: the manager has gone after its welcome
            return LOST, ""


# What may be refused, as far as an honest client can provoke it.
EXPECTED = {"not-found", "already-exists", "failed-precondition"}


def judge_lists(calls: list[Call], listed: set[str]) -> list[str]:
    """Acknowledged creates are listed until a delete, acknowledged deletes are gone for good."""
    problems = []
    known: dict[str, bool | None] = {}  # None: nobody can tell
    for call in calls:
        if call.outcome == REFUSED and call.result not in EXPECTED:
            problems.append(f"refused with {call.result}: {call}")
        there = known.get(call.name, False)
        creates, deletes = call.call == "containers.create", call.call == "containers.delete"
        if creates or deletes:
            contradicts = (
                (call.outcome == OK and there is creates)
                or (call.result == "already-exists" and there is False)
                or (call.result == "not-found" and deletes and there is True)
            )
            if contradicts:
                problems.append(f"{call.name} was {there} before: {call}")
            if call.outcome == OK:
                known[call.name] = creates
            elif call.outcome == LOST:
                known[call.name] = there if there is creates else None
            elif call.result in ("already-exists", "not-found"):
                known[call.name] = call.result == "already-exists"
    problems += [
        f"{name} was {'created' if there else 'deleted'}, and is {'not ' if there else ''}listed"
        for name, there in known.items()
        if there is not None and there is not (name in listed)
    ]
    return problems


def judge_exits(calls: list[Call], events: list[dict[str, Any]]) -> list[str]:
    """What a delete told of an exit is what the log tells."""
    told = {
        (event["event"]["container_id"], event["event"]["exited_at"]): event["event"]["exit_status"]
        for event in events
        if event["topic"] == "/tasks/exit" and not event["event"]["exec_id"]
    }
    return [
        f"deleted with {call.result}, the log tells otherwise"
        for call in calls
        if call.call == "tasks.delete"
        and call.outcome == OK
        and told.get((call.name, call.result["exited_at"])) != call.result["exit_status"]
    ]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=pytest.mark.soak)])
def test_histories_under_kill_9_are_explained(
    lighterd: Lighterd, busybox: str, seconds: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    until = time.monotonic() + seconds
    callers = [Caller(lighterd, busybox, n, choose.randrange(1 << 32), until) for n in range(4)]
    for caller in callers:
        caller.start()
    kills = 0
    while time.monotonic() < until:
        # The nemesis: its rhythm is the fault, nothing waits for it.
        time.sleep(choose.uniform(0.1, 1.5))
        lighterd.kill9()
        lighterd.start()
        kills += 1
    for caller in callers:
        caller.join()
    assert not [caller.failure for caller in callers if caller.failure]
    calls = [call for caller in callers for call in caller.calls]
    count = {o: sum(call.outcome == o for call in calls) for o in (OK, REFUSED, LOST)}
    print(f"{kills} kills, calls: {count}")
    assert count[OK] and kills, "else nothing was tested"

    with lighterd.client() as client:
        page = client.call("containers", "list", cursor="", limit=500)["containers"]
        listed = {row["id"] for row in page}
        tasks = {row["id"]: row["status"] for row in client.call("tasks", "list")["tasks"]}
    problems = [problem for caller in callers for problem in judge_lists(caller.calls, listed)]
    for name in listed:
        lives.ask(lighterd, "containers.delete", id=name, force=True)
    lives.leftovers(lighterd)
    events = lives.history(lighterd)
    problems += lives.check_history(events)
    problems += judge_exits(calls, events)
    problems += [f"a task without a container: {name}" for name in tasks.keys() - listed]
    assert not problems, "\n".join(problems)


def test_the_judge_sees_what_must_not_be() -> None:
    def call(what: str, outcome: str, result: Any = None) -> Call:
        return Call(what, "n", 0, 0, outcome, result)

    made, gone = call("containers.create", OK), call("containers.delete", OK)
    assert not judge_lists([made], {"n"})
    assert judge_lists([made], set()), "an acknowledged create that is not listed"
    assert judge_lists([made, gone], {"n"}), "an acknowledged delete that is listed"
    assert judge_lists([made, made], {"n"}), "a name made twice"
    assert not judge_lists([call("containers.create", LOST)], set())
    assert not judge_lists([call("containers.create", LOST)], {"n"})
    assert judge_lists([made, call("containers.delete", REFUSED, "internal")], {"n"})

    def event(topic: str, **body: Any) -> dict[str, Any]:
        return {"topic": f"/tasks/{topic}", "event": {"container_id": "n", **body}}

    create, start, delete = event("create"), event("start"), event("delete")
    ended = event("exit", exec_id="", exit_status=1, exited_at=5)
    started, left = event("exec-started", exec_id="x"), event("exit", exec_id="x")
    life = [create, start, started, left, ended, delete]
    assert not lives.check_history([*life, *life])
    assert not lives.check_history([create, start, started], alive=frozenset({"n"}))
    for wrong in (
        [create, start, delete],
        [create, ended, ended, delete],
        [start, create, ended, delete],
        [create, start, started, left, left, ended],
        [create, start, left, ended],
        [create, start, started, ended],
        [ended],
    ):
        assert lives.check_history(wrong), wrong
    told = call("tasks.delete", OK, {"exit_status": 1, "exited_at": 5})
    assert not judge_exits([told], life)
    assert judge_exits([call("tasks.delete", OK, {"exit_status": 2, "exited_at": 5})], life)
