"""Histories of clients at work while a nemesis breaks what it can, then judges (tests/histories).

F01 to F22, F42, F43, F51, F55: in any order, beside each other's consequences.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest

from tests import lives
from tests.harness import Lighterd
from tests.histories import (
    LOST,
    OK,
    REFUSED,
    Call,
    Caller,
    code_of,
    judge_begun,
    judge_codes,
    judge_exits,
    judge_images,
    judge_lists,
    judge_logs,
)
from tests.nemesis import Harm, MoodyRegistry, Nemesis, small_disk
from tests.registries import SmallImage, small_image

CLIENTS = 4
NAMES = [f"n{client}-{index}" for client in range(CLIENTS) for index in range(3)]
DISK = "192m"


@pytest.fixture
def on_small_disk(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    lighterd = make_lighterd()
    with small_disk(lighterd.root, DISK):
        try:
            yield lighterd.start()
        finally:
            lighterd.stop()


def tags_of(registry: MoodyRegistry, number: int, images: list[SmallImage]) -> dict[str, Any]:
    """The names of one client; each image has one of every client."""
    tags = {}
    for index, image in enumerate(images):
        registry.serve(image, f"app{index}", f"n{number}")
        tags[f"{registry.host}/app{index}:n{number}"] = image
    return tags


def read_whole(lighterd: Lighterd, image: SmallImage) -> list[str]:
    """What cannot be read of it as it was pushed."""
    problems = []
    for digest in (image.descriptor.digest, *image.blobs):
        with lighterd.client() as client:
            stream = client.stream("content", "read", digest=digest, offset=0)
            data = b"".join(item["data"] for item in stream)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            problems.append(f"{digest} is {len(data)} other bytes")
    return problems


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seconds", [120, pytest.param(600, marks=pytest.mark.soak)])
def test_histories_under_a_nemesis_are_explained(
    on_small_disk: Lighterd, seconds: int, record_property: Callable[[str, object], None]
) -> None:
    lighterd = on_small_disk
    busybox = lighterd.import_busybox()
    # In CI the same choices each time, as with hypothesis; the long one looks further there too.
    is_same = os.environ.get("CI") == "true" and seconds < 600
    seed = 1 if is_same else random.randrange(1 << 32)
    record_property("seed", seed)
    choose = random.Random(seed)
    # Images that share a layer: what one tag's end lets go, another may be pulling.
    images = [small_image(200_000, 1000 + n, seed=7) for n in range(3)]
    with MoodyRegistry() as registry:
        until = time.monotonic() + seconds
        callers = [
            Caller(lighterd, busybox, n, choose.randrange(1 << 32), until) for n in range(CLIENTS)
        ]
        for caller in callers:
            caller.tags = tags_of(registry, caller.number, images)
        for caller in callers:
            caller.start()
        nemesis = Nemesis(lighterd, registry, choose)
        try:
            nemesis.run(until)
        finally:
            for caller in callers:
                caller.until = 0
                caller.join()
    assert not [caller.failure for caller in callers if caller.failure]
    calls = [call for caller in callers for call in caller.calls]
    count = {o: sum(call.outcome == o for call in calls) for o in (OK, REFUSED, LOST)}
    record_property("faults", dict(nemesis.acts))
    record_property("calls", count)
    assert count[OK], "else nothing was tested"
    # All nine come in two minutes of an idle machine.
    assert len(+nemesis.acts) >= 6, f"little was broken: {dict(nemesis.acts)}"

    with lighterd.client() as client:
        page = client.call("containers", "list", cursor="", limit=500)["containers"]
        listed = {row["id"] for row in page}
        tasks = {row["id"]: row["status"] for row in client.call("tasks", "list")["tasks"]}
        page = client.call("images", "list", cursor="", limit=500, filters=[])["images"]
        tags = {row["name"] for row in page}
    problems = [problem for caller in callers for problem in judge_lists(caller.calls, listed)]
    for caller in callers:
        found, certain = judge_images(caller.calls, tags)
        problems += found
        problems += [line for tag in certain for line in read_whole(lighterd, caller.tags[tag])]
    for name in listed:
        began = time.time()
        lives.ask(lighterd, "containers.delete", id=name, force=True)
        calls.append(Call("containers.delete", name, began, time.time(), OK, {}))
    lighterd.resumes = True  # whoever lost a pull may have been at its last one
    lives.leftovers(lighterd, but=[str(lighterd.root)])
    events = lives.history(lighterd)
    problems += lives.check_history(events)
    problems += judge_exits(calls, events)
    problems += judge_begun(calls, events)
    problems += judge_codes(events, calls, nemesis.harms)
    assert any(call.call == "tasks.wait" and call.outcome == OK for call in calls)
    codes = {event["event"].get("exit_status") for event in events}
    assert codes & {code_of(name) for name in NAMES}, "no container ended by itself"
    assert codes & {code_of(name, True) for name in NAMES}, "no exec ended by itself"
    everything = lighterd.events("")
    problems += [line for caller in callers for line in judge_logs(caller.events, everything)]
    problems += [f"a task without a container: {name}" for name in tasks.keys() - listed]
    if problems:
        print_whole([*calls, *events], problems)
    assert not problems, "\n".join(problems)


def print_whole(history: list[Any], problems: list[str]) -> None:
    """All that was asked and told of the names in the problems, as JSON lines."""
    named = [name for name in NAMES if any(name in problem for problem in problems)]
    for item in history:
        body = asdict(item) if isinstance(item, Call) else item
        line = json.dumps(body, default=str)
        if not named or any(f'"{name}"' in line for name in named):
            print(line)


def call(what: str, outcome: str, result: Any = None, exec_id: str = "") -> Call:
    return Call(what, "n", 0, 0, outcome, result, exec_id)


def test_the_judge_of_lists_sees_what_must_not_be() -> None:
    made, gone = call("containers.create", OK), call("containers.delete", OK)
    assert not judge_lists([made], {"n"})
    assert judge_lists([made], set()), "an acknowledged create that is not listed"
    assert judge_lists([made, gone], {"n"}), "an acknowledged delete that is listed"
    assert judge_lists([made, made], {"n"}), "a name made twice"
    assert not judge_lists([call("containers.create", LOST)], set())
    assert not judge_lists([call("containers.create", LOST)], {"n"})
    full = call("containers.delete", REFUSED, "resource-exhausted")
    assert not judge_lists([made, full], {"n"})
    assert judge_lists([made, call("containers.delete", REFUSED, "internal")], {"n"})


def test_the_judge_of_images_sees_what_must_not_be() -> None:
    pulled, removed = call("images.pull", OK), call("images.delete", OK)
    read = {"wanted": "sha256:1", "read": "sha256:1"}
    assert judge_images([pulled, pulled], {"n"}) == ([], {"n"})
    assert judge_images([pulled, removed, removed], set())[0], "removed twice"
    assert judge_images([pulled], set())[0], "an acknowledged pull that is not listed"
    assert judge_images([pulled, removed], {"n"})[0], "a removed tag that is listed"
    assert not judge_images([pulled, call("content.read", OK, read)], {"n"})[0]
    wrong = call("content.read", OK, {**read, "read": "sha256:2"})
    assert judge_images([pulled, wrong], {"n"})[0]
    lost = call("content.read", REFUSED, "not-found")
    assert judge_images([pulled, lost], {"n"})[0], "content that has gone under its tag"
    assert not judge_images([pulled, removed, lost], set())[0]
    assert not judge_images([pulled, call("images.delete", LOST), lost], {"n"})[0]
    assert judge_images([call("images.pull", LOST)], {"n"}) == ([], set())


def test_the_judges_of_events_see_what_must_not_be() -> None:
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
        [create, start, left, started, ended, delete],
        [create, start, started, ended, left, delete],
        [create, start, ended, started, left, delete],
        [create, start, ended, delete, delete],
        [*life, started, left],
        [start],
    ):
        assert lives.check_history(wrong), wrong
    at = {"exit_status": 0, "exited_at": 4}
    left["event"] |= at
    told = {"exit_status": 1, "exited_at": 5}
    assert not judge_exits([call("tasks.delete", OK, told)], life)
    assert not judge_exits([call("tasks.get", OK, {"task": told})], life)
    assert not judge_exits([call("tasks.get", OK, {"task": {"exit_status": None}})], life)
    for other in ({**told, "exit_status": 2}, {**told, "exited_at": 6}):
        assert judge_exits([call("tasks.delete", OK, other)], life)
        assert judge_exits([call("tasks.get", OK, {"task": other})], life)
        assert judge_exits([call("tasks.wait", OK, other)], life)
    assert not judge_exits([call("tasks.wait", OK, at, "x")], life)
    assert judge_exits([call("tasks.wait", OK, {**at, "exit_status": 3}, "x")], life)
    assert judge_exits([call("tasks.wait", OK, at)], life), "an exec's end is not init's"


def test_the_judge_of_what_was_begun_sees_what_must_not_be() -> None:
    def event(topic: str, **body: Any) -> dict[str, Any]:
        return {"topic": f"/tasks/{topic}", "event": {"container_id": "n", "pid": 7, **body}}

    events = [event("create"), event("start"), event("exec-started", exec_id="x", pid=8)]
    created, started = call("tasks.create", OK, {"pid": 7}), call("tasks.start", OK, {"pid": 7})
    execed = call("tasks.exec", OK, {"exec_id": "x", "pid": 8}, "x")
    assert not judge_begun([created, started, execed], events)
    assert not judge_begun([call("tasks.start", LOST), call("tasks.start", REFUSED, "x")], [])
    for number, one in enumerate((created, started, execed)):
        assert judge_begun([one], events[:number] + events[number + 1 :]), one
    assert judge_begun([call("tasks.start", OK, {"pid": 9})], events), "another process"
    assert judge_begun([call("tasks.exec", OK, {"pid": 8}, "y")], events), "another exec"


def test_the_judge_of_codes_sees_what_must_not_be() -> None:
    def ended(exec_id: str, status: int, at: float = 100) -> dict[str, Any]:
        told = {"container_id": "n1-2", "exec_id": exec_id, "exit_status": status}
        return {"topic": "/tasks/exit", "event": {**told, "exited_at": int(at * 1e9)}}

    def asked(what: str, outcome: str, result: Any = None, name: str = "n1-2") -> Call:
        return Call(what, name, 98, 99, outcome, result)

    assert len({code_of(name, of) for name in NAMES for of in (False, True)}) == 2 * len(NAMES)
    created = {"topic": "/tasks/create", "timestamp": 90e9, "event": {"container_id": "n1-2"}}
    well = [created, ended("", code_of("n1-2")), ended("x", code_of("n1-2", True))]
    assert not judge_codes([*well, {"topic": "/tasks/start", "event": {}}], [], [])
    for wrong in (ended("", 0), ended("x", code_of("n1-2")), ended("", code_of("n1-1"))):
        assert judge_codes([wrong], [asked("tasks.kill", OK)], []), wrong

    killed, unknown = [created, ended("", 137)], [created, ended("x", 255)]
    assert judge_codes(killed, [], []), "nobody has killed it"
    assert judge_codes(unknown, [], []), "nothing has happened to its shim"
    assert not judge_codes(killed, [asked("tasks.kill", OK, {})], [])
    assert not judge_codes(killed, [asked("containers.delete", OK)], [])
    assert judge_codes([created, ended("", 137, 97)], [asked("tasks.delete", OK, {})], []), "after"
    assert judge_codes(killed, [asked("tasks.kill", REFUSED, "not-found")], [])
    assert judge_codes(killed, [asked("tasks.kill", OK, name="n1-1")], []), "another one"
    assert judge_codes(killed, [asked("tasks.get", LOST)], []), "a look kills nobody"
    assert judge_codes(unknown, [asked("tasks.kill", OK)], []), "it was seen to end"
    for cause in asked("tasks.start", LOST), asked("tasks.exec", REFUSED, "resource-exhausted"):
        assert not judge_codes(killed + unknown, [cause], [])
    for harm in Harm("n1-2", 95, 98), Harm("", 99.5, 105):
        assert not judge_codes(killed + unknown, [], [harm])
    for harm in Harm("n1-1", 95, 98), Harm("n1-2", 70, 80), Harm("n1-2", 102, 103):
        assert judge_codes(killed, [], [harm]), harm


def test_the_judge_of_logs_sees_what_must_not_be() -> None:
    log = [{"sequence": number, "event": {"exit_status": number}} for number in range(1, 6)]
    assert not judge_logs([], log)
    assert not judge_logs(log[:3], log)
    assert judge_logs([log[0], log[2]], log), "one was passed over"
    assert judge_logs([log[0], log[0], log[1]], log), "one was told twice"
    assert judge_logs([log[0], {**log[1], "event": {"exit_status": 9}}], log), "a code changed"
