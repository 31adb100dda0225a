"""Recorded histories: clients at work while things break, and judges of what they were told.

Each client notes every call with its answer. Names are the clients' own, so what a client was told
about them is everything that was asked of them; the judges compare that with the lists at the end
and with the event log. Contents are everybody's: what one client's tag lets go another's may need.
The method is Jepsen's; the properties are those of the API.
"""

import hashlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import zmq

from lighter.proto import errors
from tests import lives
from tests.client import Client
from tests.harness import Lighterd
from tests.lives import NO_STDIO
from tests.nemesis import Harm
from tests.registries import SmallImage

CALL_S = 5.0
WAIT_S = 0.5  # who waits for an end that may not come
OK, REFUSED, LOST = "ok", "refused", "lost"
# Nobody can tell whether a call was carried out that ended so.
UNTOLD = {"unavailable", "deadline-exceeded", "canceled"}
# What may be refused, as far as an honest client can provoke it; the others are of a full disk and
# of bodies that are cut.
EXPECTED = {"not-found", "already-exists", "failed-precondition"}
OF_FAULTS = {"resource-exhausted", "data-loss"}
KILLED, UNKNOWN = 128 + lives.SIGKILL, 255  # by somebody; what nobody saw end
BEGINS = {
    "tasks.create": "/tasks/create",
    "tasks.start": "/tasks/start",
    "tasks.exec": "/tasks/exec-started",
}
KILLS = {"tasks.kill", "tasks.delete", "containers.delete"}  # a created task may be deleted
SLACK_S = 0.1  # between what a client has seen and the time that is told of it


@dataclass
class Call:
    """`outcome`: answered, refused with the error code in `result`, or lost: either is true.

    `began` and `ended` are by the clock that events are told with.
    """

    call: str
    name: str
    began: float
    ended: float
    outcome: str
    result: Any
    exec_id: str = ""


@dataclass
class Caller(threading.Thread):
    """One client with names of its own, each going through random steps of its life.

    `tags`: what it may pull, by name. `events`: the log as it was read, piece by piece.
    """

    lighterd: Lighterd
    image: str
    number: int
    seed: int
    until: float
    tags: dict[str, SmallImage] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        choose = random.Random(self.seed)
        try:
            while time.monotonic() < self.until:
                kind = choose.random()
                if self.tags and kind < 0.3:
                    self._step_of_image(choose)
                elif kind < 0.35:
                    self._read_log()
                else:
                    self._step(f"n{self.number}-{choose.randrange(3)}", choose)
        except Exception as error:
            self.failure = f"client {self.number}: {error!r}"

    def _step(self, name: str, choose: random.Random) -> None:
        body: dict[str, Any]
        call, body = choose.choice(
            [
                ("containers.create", {"image": self.image, "args": ["sleep", "1000"]}),
                (
                    "containers.create",
                    {"image": self.image, "args": _ends_with(code_of(name))},
                ),
                ("tasks.create", NO_STDIO),
                ("tasks.start", {}),
                ("tasks.exec", {}),
                ("tasks.kill", {"exec_id": "", "signal": lives.SIGKILL, "all": False}),
                ("tasks.get", {}),
                ("tasks.wait", {"exec_id": ""}),
                ("tasks.delete", {"exec_id": "", "force": False}),
                ("containers.delete", {"force": choose.random() < 0.5}),
            ]
        )
        if call == "tasks.exec":
            self._exec(name)
        elif self._note(call, name, {"id": name, **body}) == OK and call == "tasks.start":
            self._exec(name)  # most others find no task that runs

    def _exec(self, name: str) -> None:
        """Begin one, and see how it ends."""
        which = {"id": name, "exec_id": f"x{len(self.calls)}"}
        body = {"args": _ends_with(code_of(name, True)), **NO_STDIO}
        if self._note("tasks.exec", name, {**which, **body}) == OK:
            self._note("tasks.wait", name, which)
            self._note("tasks.delete", name, {**which, "force": False})

    def _step_of_image(self, choose: random.Random) -> None:
        name, image = choose.choice(list(self.tags.items()))
        call = choose.choice(["images.pull", "images.pull", "content.read", "images.delete"])
        if call == "content.read":
            digest = choose.choice([image.descriptor.digest, *image.blobs])
            self._note(call, name, {"digest": digest})
        elif call == "images.pull":
            access = {"plain_http": True}
            unpack = choose.random() < 0.3
            self._note(call, name, {"name": name, "access": access, "unpack": unpack})
        else:
            self._note(call, name, {"name": name})

    def _read_log(self) -> None:
        """Go on reading the log of all namespaces where it was left."""
        since = self.events[-1]["sequence"] if self.events else self.lighterd.first_event
        try:
            with Client(self.lighterd.address, "", timeout_s=CALL_S) as client:
                body = {"since": since, "follow": False}
                # Item by item: what was read before an answer is lost has been read.
                for item in client.stream("events", "subscribe", timeout_s=CALL_S, **body):
                    self.events.append(item)
        except (errors.Unavailable, errors.DeadlineExceeded, errors.Canceled, zmq.ZMQError):
            pass
        except errors.LighterError as error:
            assert error.code in OF_FAULTS, error

    def _note(self, call: str, name: str, body: dict[str, Any]) -> str:
        began = time.time()
        outcome, result = self._ask(call, body)
        exec_id = body.get("exec_id", "")
        self.calls.append(Call(call, name, began, time.time(), outcome, result, exec_id))
        return outcome

    def _ask(self, call: str, body: dict[str, Any]) -> tuple[str, Any]:
        service, _, method = call.partition(".")
        try:
            timeout_s = WAIT_S if method == "wait" else CALL_S
            with Client(self.lighterd.address, timeout_s=CALL_S) as client:
                stream = client.stream(service, method, timeout_s=timeout_s, **body)
                read = hashlib.sha256()
                for item in stream:
                    read.update(item.get("data", b""))
                if call == "content.read":
                    return OK, {"wanted": body["digest"], "read": f"sha256:{read.hexdigest()}"}
                return OK, stream.result
        except errors.LighterError as error:
            return (LOST if error.code in UNTOLD else REFUSED), error.code
        except (OSError, zmq.ZMQError):  # the manager has gone after its welcome
            return LOST, ""


def code_of(name: str, of_exec: bool = False) -> int:
    """What a container's init, or each of its execs, ends with by itself: of each name its own."""
    client, _, index = name.removeprefix("n").partition("-")
    return 3 + int(client) * 6 + int(index) * 2 + of_exec


def _ends_with(code: int) -> list[str]:
    return ["sh", "-c", f"exit {code}"]


# -- the judges


class Names:
    """What is known of each name: True, False or, when nobody can tell, None."""

    def __init__(self, makes: str, removes: str, *, makes_again: bool = False) -> None:
        self.known: dict[str, bool | None] = {}
        self.problems: list[str] = []
        self._makes = makes
        self._removes = removes
        self._makes_again = makes_again  # it is no error that the name is there already

    def hear(self, call: Call) -> None:
        if call.call not in (self._makes, self._removes):
            return
        makes = call.call == self._makes
        there = self.known.get(call.name, False)
        contradicts = (
            (call.outcome == OK and there is makes and not (makes and self._makes_again))
            or (call.result == "already-exists" and there is False)
            or (call.result == "not-found" and not makes and there is True)
        )
        if contradicts:
            self.problems.append(f"{call.name} was {there} before: {call}")
        if call.outcome == OK:
            self.known[call.name] = makes
        elif call.outcome == LOST or call.result in OF_FAULTS:
            self.known[call.name] = there if there is makes else None
        elif call.result == "already-exists" or (call.result == "not-found" and not makes):
            self.known[call.name] = call.result == "already-exists"

    def compare(self, listed: set[str]) -> list[str]:
        """Acknowledged creates are listed until a delete, acknowledged deletes are for good."""
        return self.problems + [
            f"{name} was {'made' if there else 'removed'}, and is {'not ' if there else ''}listed"
            for name, there in self.known.items()
            if there is not None and there is not (name in listed)
        ]


def judge_lists(calls: list[Call], listed: set[str]) -> list[str]:
    """Of one client's containers."""
    names = Names("containers.create", "containers.delete")
    for call in calls:
        names.hear(call)
    return names.compare(listed) + [
        f"refused with {call.result}: {call}"
        for call in calls
        if call.outcome == REFUSED and call.result not in EXPECTED | OF_FAULTS
    ]


def judge_images(calls: list[Call], listed: set[str]) -> tuple[list[str], set[str]]:
    """Of one client's tags; and those that are there for certain.

    What an acknowledged pull has brought can be read until the tag is removed, whoever else
    removes another tag of the same content.
    """
    names = Names("images.pull", "images.delete", makes_again=True)
    problems = []
    for call in calls:
        names.hear(call)
        if call.call != "content.read":
            continue
        if call.outcome == OK and call.result["read"] != call.result["wanted"]:
            problems.append(f"wrong bytes: {call}")
        if call.result == "not-found" and names.known.get(call.name):
            problems.append(f"{call.name} was pulled: {call}")
    certain = {name for name, there in names.known.items() if there}
    return problems + names.compare(listed), certain


def judge_begun(calls: list[Call], events: list[dict[str, Any]]) -> list[str]:
    """Each task and each exec that a client was told is begun has its event, of that process."""
    told = {
        (
            event["topic"],
            event["event"]["container_id"],
            event["event"].get("exec_id", ""),
            event["event"]["pid"],
        )
        for event in events
        if event["topic"] in BEGINS.values()
    }
    return [
        f"no {BEGINS[call.call]} tells of {call}"
        for call in calls
        if call.outcome == OK
        and call.call in BEGINS
        and (BEGINS[call.call], call.name, call.exec_id, call.result["pid"]) not in told
    ]


def judge_exits(calls: list[Call], events: list[dict[str, Any]]) -> list[str]:
    """What a wait, a delete or a look told of an exit is what the log tells, of execs too."""
    told = {
        _which(event["event"]): event["event"]["exit_status"]
        for event in events
        if event["topic"] == "/tasks/exit"
    }
    problems = []
    for call in calls:
        if call.outcome != OK or call.call not in ("tasks.wait", "tasks.delete", "tasks.get"):
            continue
        seen = call.result["task"] if call.call == "tasks.get" else call.result
        if seen["exit_status"] is None:
            continue
        if told.get((call.name, call.exec_id, seen["exited_at"])) != seen["exit_status"]:
            problems.append(f"{call} told what the log tells otherwise")
    return problems


def _which(told: dict[str, Any]) -> tuple[str, str, int]:
    return told["container_id"], told["exec_id"], told["exited_at"]


def judge_codes(events: list[dict[str, Any]], calls: list[Call], harms: list[Harm]) -> list[str]:
    """Each process of a client's ended as it was asked to; or it was killed, or nobody saw it, and
    something is known that it may have died of.
    """
    problems = []
    begun: dict[str, float] = {}
    for event in events:
        told = event["event"]
        if event["topic"] == "/tasks/create":
            begun[told["container_id"]] = event["timestamp"] / 1e9
        if event["topic"] != "/tasks/exit":
            continue
        name, status = told["container_id"], told["exit_status"]
        own = code_of(name, bool(told["exec_id"]))
        if status == own:
            continue
        if status not in (KILLED, UNKNOWN):
            problems.append(f"not {own}: {told}")
            continue
        # A call that was lost may be carried out until its caller's time is up.
        since, until = begun.get(name, 0.0) - CALL_S, told["exited_at"] / 1e9 + SLACK_S
        causes = [
            *(call for call in calls if call.name == name and _may_end(call, status)),
            *(harm for harm in harms if harm.container in (name, "")),
        ]
        if not any(cause.began <= until and cause.ended >= since for cause in causes):
            problems.append(f"not {own}, and of nothing that is known: {told}")
    return problems


def _may_end(call: Call, status: int) -> bool:
    """Whether a process may have ended so by the call: what kills, and what was broken off."""
    if call.outcome == LOST or (call.outcome == REFUSED and call.result in OF_FAULTS):
        return call.call not in ("tasks.get", "tasks.wait")
    return status == KILLED and call.outcome == OK and call.call in KILLS


def judge_logs(read: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[str]:
    """What was read piece by piece, of several managers, is what the log tells: no exit changes."""
    if not read:
        return []
    last = read[-1]["sequence"]
    upto = [event for event in events if event["sequence"] <= last]
    if read == upto:
        return []
    first = next((pair for pair in zip(read, upto, strict=False) if pair[0] != pair[1]), None)
    return [f"{len(read)} events were read, the log has {len(upto)}; they differ in {first}"]
