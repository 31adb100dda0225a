"""SEC-75: many clients do the same things to the same names at once."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from lighter.proto import errors
from tests import lives
from tests.harness import Lighterd
from tests.lives import NO_STDIO

CLIENTS = 16
NAMES = 3
CALL_S = 30.0
# What each may be answered with, as far as the others can have been faster.
GONE, THERE, NOT_NOW = errors.NotFound, errors.AlreadyExists, errors.FailedPrecondition
MAY_BE: dict[str, tuple[type[errors.LighterError], ...]] = {
    "containers.create": (THERE, NOT_NOW),
    "containers.label": (GONE,),
    "containers.delete": (GONE, NOT_NOW),
    "tasks.create": (GONE, THERE, NOT_NOW),
    "tasks.start": (GONE, NOT_NOW),
    "tasks.kill": (GONE, NOT_NOW),
    "tasks.delete": (GONE, NOT_NOW),
    "images.tag": (THERE,),
    "images.label": (GONE,),
    "images.delete": (GONE,),
    "namespaces.create": (THERE,),
    "namespaces.label": (GONE,),
    "namespaces.delete": (GONE, NOT_NOW),
}


@dataclass(eq=False)
class Rival(threading.Thread):
    """One client; `wrong` are the answers that nobody should get."""

    lighterd: Lighterd
    image: str
    seed: int
    until: float
    calls: tuple[str, ...] = tuple(MAY_BE)
    names: int = NAMES
    answered: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def run(self) -> None:
        choose = random.Random(self.seed)
        try:
            with self.lighterd.client() as client:
                while time.monotonic() < self.until:
                    call, body = self._next(choose)
                    try:
                        client.call(*call.split("."), timeout_s=CALL_S, **body)
                    except MAY_BE[call]:
                        pass
                    self.answered += 1
        except Exception as error:
            self.wrong.append(f"{call} {body}: {error!r}")

    def _next(self, choose: random.Random) -> tuple[str, dict[str, Any]]:
        number = choose.randrange(self.names)
        call = choose.choice(self.calls)
        kind, _, act = call.partition(".")
        label = {"labels": {"of": str(self.seed), "gone": choose.choice(["", "not yet"])}}
        if kind == "images":
            name = f"docker.io/library/other:{number}"
            if act == "tag":
                return call, {"source": self.image, "name": name, "force": False}
            more = {**label, "replace_all": choose.random() < 0.5} if act == "label" else {}
            return call, {"name": name, **more}
        if kind == "namespaces":
            return call, {"name": f"other{number}", **({} if act == "delete" else label)}
        bodies: dict[str, dict[str, Any]] = {
            "containers.create": {"image": self.image, "args": ["sleep", "1000"]},
            "containers.label": label,
            "containers.delete": {"force": self.names == 1 or choose.random() < 0.5},
            "tasks.create": NO_STDIO,
            "tasks.kill": {"exec_id": "", "signal": lives.SIGKILL, "all": False},
            "tasks.delete": {"exec_id": "", "force": choose.random() < 0.5},
        }
        return call, {"id": f"c{number}", **bodies.get(call, {})}


@pytest.mark.timeout(0)
def test_sec_75_a_delete_takes_no_later_container_of_that_name(
    lighterd: Lighterd, busybox: str
) -> None:
    """Two wait for the same task's end: the second finds another container, with a task, there."""
    calls = ("containers.create", "tasks.create", "containers.delete", "containers.delete")
    contend(lighterd, busybox, 4, calls, 1)


def test_sec_75_of_two_deletes_of_one_task_the_second_finds_none(
    lighterd: Lighterd, busybox: str
) -> None:
    """Both have found it when the first begins; what has its name by then would be another's."""
    lives.begin(lighterd, busybox, "c", "true")
    lives.await_task(lighterd, "c", "stopped")
    answers = []
    with lighterd.client() as one, lighterd.client() as two:
        lives.hold_still(lighterd.pid)
        try:
            asked = [
                client.stream("tasks", "delete", id="c", exec_id="", force=False)
                for client in (one, two)
            ]
        finally:
            os.kill(lighterd.pid, signal.SIGCONT)
        for stream in asked:
            try:
                assert not list(stream)
                answers.append(stream.result["exit_status"])
            except errors.NotFound:
                answers.append("not found")
    assert sorted(answers, key=str) == [0, "not found"]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seconds", [4, pytest.param(600, marks=pytest.mark.soak)])
def test_sec_75_each_is_answered_with_what_fits(
    lighterd: Lighterd, busybox: str, seconds: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("calls answered", contend(lighterd, busybox, seconds))


def contend(
    lighterd: Lighterd,
    image: str,
    seconds: int,
    calls: tuple[str, ...] = tuple(MAY_BE),
    names: int = NAMES,
) -> int:
    """Let clients do these calls; afterwards all can be removed, and nothing is left. Returns how
    many have succeeded.
    """
    until = time.monotonic() + seconds
    rivals = [Rival(lighterd, image, seed, until, calls, names) for seed in range(CLIENTS)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    assert not (wrong := [text for rival in rivals for text in rival.wrong]), "\n".join(wrong)
    answered = sum(rival.answered for rival in rivals)
    assert answered > len(MAY_BE)
    with lighterd.client() as client:
        for row in client.call("containers", "list", cursor="", limit=9)["containers"]:
            client.call("containers", "delete", id=row["id"], force=True)
        for number in range(NAMES):
            for call, name in (("images", f"docker.io/library/other:{number}"),
                               ("namespaces", f"other{number}")):  # fmt: skip
                try:
                    client.call(call, "delete", name=name)
                except errors.NotFound:
                    pass
    lives.leftovers(lighterd)
    assert not (wrong := lives.check_history(lives.history(lighterd))), "\n".join(wrong)
    return answered
