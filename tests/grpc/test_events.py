"""containerd's Events: the same as containerd's for the same acts, filters, and no subscriber
left behind."""

import json
import queue
import secrets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.timestamp_pb2 import Timestamp

from lighter.daemon.grpc.pb import event_service_pb2, events_pb2, types_pb2
from tests.grpc.client import Api, code
from tests.grpc.pair import OURS, PEER, Pair
from tests.grpc.workshop import Workshop
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE


class Heard:
    """What a subscription brings, in another thread."""

    def __init__(self, api: Api, *filters: str) -> None:
        self.stream = api.stream(event_service_pb2, "Events", "Subscribe", filters=filters)
        self.envelopes: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for envelope in self.stream:
                self.envelopes.put(envelope)
        except grpc.RpcError:
            pass

    def next(self) -> Any:
        return self.envelopes.get(timeout=30)


@contextmanager
def heard(api: Api, *filters: str) -> Iterator[Heard]:
    """A subscription that is under way: its own mark has come through."""
    one = Heard(api, *filters, "topic==/marks/begun")
    stop = threading.Event()

    def mark() -> None:
        while not stop.wait(0.05):
            api.call(event_service_pb2, "Events", "Publish", topic="/marks/begun")

    marking = threading.Thread(target=mark)
    marking.start()
    try:
        assert one.next()
        stop.set()
        marking.join()
        yield one
    finally:
        stop.set()
        one.stream.cancel()


def _of(one: Heard) -> Any:
    """The next that is no mark."""
    while (envelope := one.next()).topic == "/marks/begun":
        pass
    return envelope


def test_the_same_acts_tell_the_same(pair: Pair) -> None:
    """Topics, types and fields of a container's life, images and namespaces, as ctr prints them."""
    told = {side: _told(pair, side) for side in (PEER, OURS)}
    assert told[OURS] == told[PEER]
    assert [topic for topic, _ in told[OURS]].count("/tasks/exit") == 2


def _told(pair: Pair, side: str) -> list[tuple[str, Any]]:
    listening = subprocess.Popen(
        pair.argv(side, "events"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert listening.stdout is not None
    lines: queue.Queue[bytes] = queue.Queue()
    stdout = listening.stdout
    threading.Thread(target=lambda: [lines.put(line) for line in stdout], daemon=True).start()
    try:
        beginning = f"begin-{side}"

        def begun() -> bool:
            pair.run(side, "images", "tag", "--force", REFERENCE, beginning)
            seen = []
            while not lines.empty():
                seen.append(lines.get())
            return any(beginning.encode() in line for line in seen)

        await_that(begun, 30, "events come")
        pair.run(side, "images", "rm", beginning)
        fifos = ("--fifo-dir", str(pair.fifos))
        pair.run(side, "run", "-d", *fifos, REFERENCE, "e", "sleep", "1000")
        pair.run(side, "tasks", "exec", "--exec-id", "x", "e", "sh", "-c", "exit 3")
        pair.run(side, "tasks", "pause", "e")
        pair.run(side, "tasks", "resume", "e")
        pair.run(side, "containers", "label", "e", "a=b")
        pair.run(side, "tasks", "kill", "-s", "9", "e")
        pair.run(side, "tasks", "attach", "e")
        pair.run(side, "containers", "rm", "e")
        pair.run(side, "images", "tag", REFERENCE, "t:1")
        pair.run(side, "images", "label", "t:1", "a=b")
        pair.run(side, "images", "rm", "t:1")
        pair.run(side, "namespaces", "create", f"made-{side}")
        pair.run(side, "namespaces", "label", f"made-{side}", "a=b")
        pair.run(side, "namespaces", "rm", f"made-{side}")
        events = []
        while not events or events[-1][0] != "/namespaces/delete":
            events.append(_event(lines.get(timeout=30), side))
        # What is of this test, or of the namespaces that it makes.
        return [event for event in events if event is not None and "begin-" not in str(event)]
    finally:
        listening.kill()
        listening.wait()
        stdout.close()


_OWN = {"pid", "exited_at", "bundle", "io", "rootfs"}


def _event(line: bytes, side: str) -> tuple[str, Any]:
    *_, topic, body = line.decode().replace(side, "NAMESPACE").split(" ", 6)
    fields = json.loads(body)
    return topic, {name: value for name, value in fields.items() if name not in _OWN}


def test_filters(workshop: Workshop) -> None:
    # A manager that has just started tells of the tests before as well.
    here = f"namespace=={workshop.namespace}"
    with (
        heard(workshop.api, f'{here},topic~=|^/tasks/|,event.container_id=="b"') as of_b,
        heard(
            workshop.api, f"{here},topic==/containers/create", f'{here},event.labels."x.y"==z'
        ) as several,
        heard(workshop.api, f"{here},topic==/tasks/start") as started,
    ):
        for name in ("a", "b"):
            workshop.create(name, "sleep", "1000")
            workshop.tasks("Start", container_id=name)
        workshop.ctr("containers", "label", "a", "x.y=z")
        created = _of(of_b)
        assert (created.topic, created.namespace) == ("/tasks/create", workshop.namespace)
        assert created.event.type_url == "containerd.events.TaskCreate"
        assert events_pb2.TaskCreate.FromString(created.event.value).container_id == "b"
        assert _of(of_b).topic == "/tasks/start"
        assert [_of(several).topic for _ in range(3)] == [
            *("/containers/create", "/containers/create", "/containers/update")
        ]
        assert [
            events_pb2.TaskStart.FromString(_of(started).event.value).container_id for _ in range(2)
        ] == ["a", "b"]


def test_publish_and_forward(workshop: Workshop) -> None:
    value = Any_(type_url="some.Thing", value=b"\0\1\xff")
    with heard(workshop.api, "topic~=/mine") as listener:
        publish = (event_service_pb2, "Events", "Publish")
        workshop.api.call(*publish, topic="/mine/one", event=value)
        one = _of(listener)
        assert (one.topic, one.namespace, one.event) == ("/mine/one", workshop.namespace, value)
        envelope = types_pb2.Envelope(
            namespace="other", topic="/mine/two", event=value, timestamp=Timestamp(seconds=7)
        )
        workshop.api.call(event_service_pb2, "Events", "Forward", envelope=envelope)
        assert _of(listener) == envelope
        for topic in ("", "mine", "/", "/a//b", "/a b"):
            with pytest.raises(grpc.RpcError) as refused:
                workshop.api.call(*publish, topic=topic, event=value)
            assert code(refused.value) == "INVALID_ARGUMENT", topic
    # Our own list goes on over an event that it has no words for.
    assert "/mine/one" in workshop.ctl("events", "--no-follow", "--since", "0")


def test_soon_after_a_start_what_was_missed_comes_first(lighterd: Lighterd, tmp_path: Path) -> None:
    """A container ends while no manager is there: a subscriber without a number hears of it."""
    with Workshop(lighterd, tmp_path / "fifos") as workshop:
        stdin = workshop.fifo("in")
        workshop.create("c", "sh", "-c", "read x; exit 42", stdin=stdin)
        workshop.tasks("Start", container_id="c")
        lighterd.kill9()
        Path(stdin).write_bytes(b"go\n")
        lighterd.start()
        await_that(
            lambda: workshop.tasks("Get", container_id="c").process.exit_status == 42,
            30,
            "the exit is known",
        )

        def hear(topic: str = "/tasks/exit") -> list[tuple[str, str, int]]:
            """What of this topic a new subscriber is told, up to a mark that is made then."""
            mark = f"/marks/{secrets.token_hex(4)}"
            listener = Heard(workshop.api, f"topic=={topic}", f"topic=={mark}")
            workshop.api.call(event_service_pb2, "Events", "Publish", topic=mark)
            told = []
            while (envelope := listener.next()).topic != mark:
                exit_ = events_pb2.TaskExit.FromString(envelope.event.value)
                told.append((exit_.container_id, exit_.id, exit_.exit_status))
            listener.stream.cancel()
            return told

        assert hear() == [("c", "c", 42)]
        # The manager may have been killed before it had sent that.
        lighterd.kill9()
        lighterd.start()
        assert hear() == [("c", "c", 42)]
        workshop.create("d", "sh", "-c", "exit 43")
        workshop.tasks("Start", container_id="d")
        workshop.tasks("Wait", container_id="d")
        assert hear() == [("c", "c", 42), ("d", "d", 43)]
        assert len(hear("/tasks/start")) == 1
        # Who has deleted the tasks knows: the names may be other processes' by now.
        for name in ("c", "d"):
            workshop.tasks("Delete", container_id=name)
        assert hear() == []
        assert hear("/tasks/start") == [], "whose end is told no more would seem to run"


def test_a_subscriber_that_vanishes_leaves_nothing(workshop: Workshop) -> None:
    """F80: fifty of them, cancelled or cut off with their connection."""
    with workshop.lighterd.client() as native:

        def subscribers() -> Any:
            return native.call("system", "health")["subscribers"]

        before = subscribers()
        gone = Api(workshop.lighterd.grpc_address, workshop.namespace)
        listening = [Heard(api) for api in (workshop.api, gone) for _ in range(25)]
        await_that(lambda: subscribers() == before + 50, 30, "all have subscribed")
        for one in listening[:25]:
            one.stream.cancel()
        gone.__exit__(None, None, None)
        await_that(lambda: subscribers() == before, 30, "none is left")
