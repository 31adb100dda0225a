"""Every method of containerd's API with fields that nobody would send: an error, or an answer.

Three kinds of request: messages of the method's type with hostile values, which get past the
parser, bytes that may be of none, and requests of real clients with some damaged fields, which get
furthest. None is a fault of the manager's, which says so in its log. A method without a stream
answers: one that does not is asked once more, and waited for.
"""

import base64
import contextlib
import importlib
import pkgutil
import random
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from lighter.daemon.grpc import pb
from lighter.daemon.grpc.pb import containers_pb2, sandbox_pb2, version_pb2
from lighter.proto.version import VERSION
from tests.grpc import requests
from tests.grpc.client import Api
from tests.grpc.space import Space
from tests.grpc.test_methods import methods
from tests.harness import Lighterd, await_that

NAMESPACE = "fuzz"
ANSWER_S = 0.5
ASKED_AGAIN_S = 30.0
IN_CI = 1500  # requests: with the rounds beside them what five rounds were
SOAK_S = 3600.0
# What gRPC logs of its own, with a traceback.
OF_GRPC = ("DecodeError", "Failed sending error status from server")
DEPTH = 3
TEXTS = [
    *("", "c", "default", NAMESPACE, "overlayfs", "native", "runc", "../x", "/", "/proc/self/fd/3"),
    *("a" * 300, "é\u202e", "\0", "x\ny", "%s{}", "sha256:" + "0" * 64, "sha256:", "docker.io/x:1"),
    *("io.containerd.runc.v2", "name==x", "name~=(", "labels.", "application/json", "-1"),
    *("containerd.io/gc.root", "application/vnd.oci.image.layer.v1.tar+gzip", "unix:///x"),
]
NUMBERS = [0, 1, 2, 5, 9, 64, 255, 4096, (1 << 31) - 1]
LARGE = [-1, 1 << 31, 1 << 40, (1 << 63) - 1]
# UNKNOWN is an answer: containerd's own to some of it.
FAULT = "INTERNAL"
LATE = "DEADLINE_EXCEEDED"
# They answer when something ends.
WAITS = {
    "containerd.services.tasks.v1.Tasks/Wait",
    "containerd.services.sandbox.v1.Controller/Wait",
}


def value(field: FieldDescriptor, choose: random.Random, depth: int) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return message(field.message_type, choose, depth - 1)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return choose.choice([one.number for one in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return choose.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return choose.randbytes(choose.choice([0, 1, 40]))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return choose.choice(TEXTS)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return choose.choice([0.0, -1.0, float("inf"), float("nan")])
    if kind == FieldDescriptor.CPPTYPE_INT64 and choose.random() < 0.3:
        return choose.choice(LARGE)
    return choose.choice(NUMBERS)


def hostile(field: FieldDescriptor, choose: random.Random) -> Any:
    return value(field, choose, DEPTH)


def message(kind: Descriptor, choose: random.Random, depth: int = DEPTH) -> Message:
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if choose.random() < 0.3 or (depth == 0 and field.message_type is not None):
            continue
        place = getattr(made, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            put_in_map(place, field.message_type, choose, depth)
        elif field.is_repeated:
            for _ in range(choose.choice([0, 1, 3])):
                one = value(field, choose, depth)
                place.add().CopyFrom(one) if field.message_type else place.append(one)
        elif field.message_type is not None:
            place.CopyFrom(value(field, choose, depth))
        else:
            setattr(made, field.name, value(field, choose, depth))
    return made


def put_in_map(place: Any, entry: Descriptor, choose: random.Random, depth: int) -> None:
    key, held = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(choose.choice([0, 1, 3])):
        name, one = value(key, choose, depth), value(held, choose, depth)
        if held.message_type is not None:
            place[name].CopyFrom(one)
        else:
            place[name] = one


def wild(choose: random.Random) -> bytes:
    """Fields by number and wire type, some of which say more than is there."""
    parts = []
    for _ in range(choose.randint(1, 6)):
        number, kind = choose.randint(1, 15), choose.choice([0, 1, 2, 2, 2, 3, 5])
        data = choose.randbytes(choose.choice([0, 1, 8, 30]))
        parts.append(bytes([number << 3 | kind]))
        parts.append({0: b"\xff\x7f", 1: bytes(8), 5: struct.pack("<f", 1)}.get(kind, b""))
        if kind == 2:
            parts.append(bytes([choose.choice([len(data), 127])]) + data)
    return b"".join(parts)


class Caller:
    """Asks one manager; `faults` are what it should not have said."""

    def __init__(self, space: Any, seed: int) -> None:
        self._space = space
        self._choose = random.Random(seed)
        self.faults: list[str] = []
        self.asked = 0
        self.answered = 0

    def ask_all(self) -> None:
        with grpc.insecure_channel(f"unix:{self._space.api.path}") as channel:
            for name, kind in methods():
                if taken := input_of(name):
                    typed = message(taken, self._choose)
                    self.ask(channel, name, kind, typed.SerializeToString(), str(typed))
                self.ask(channel, name, kind, wild(self._choose), "")

    def ask_damaged(self, until: Callable[[int], bool]) -> None:
        """Requests of real clients, damaged, until so many are enough."""
        known = [(name, data) for name, made in requests.read().items() for data in made]
        kinds = dict(methods())
        with grpc.insecure_channel(f"unix:{self._space.api.path}") as channel:
            while not until(self.asked):
                name, data = self._choose.choice(known)
                taken = input_of(name)
                assert taken is not None, name
                kind = GetMessageClass(taken)
                asked = requests.damaged(data, kind, self._choose, hostile)
                shown = base64.b64encode(asked).decode() if is_one(asked, kind) else ""
                self.ask(channel, name, kinds[name], asked, shown)

    def ask(self, channel: grpc.Channel, name: str, kind: str, data: bytes, shown: str) -> None:
        self.asked += 1
        ended, details = self._end(channel, name, kind, data, ANSWER_S)
        if ended == LATE and kind == "" and name not in WAITS:
            ended, details = self._end(channel, name, kind, data, ASKED_AGAIN_S)
            if ended == LATE:
                self.faults.append(f"{name}: no answer\n{shown or data.hex()}")
        if shown and ended == FAULT:
            self.faults.append(f"{name}: {details}\n{shown}")

    def _end(
        self, channel: grpc.Channel, name: str, kind: str, data: bytes, timeout_s: float
    ) -> tuple[str, str]:
        """How the call ends, in gRPC's words, and why."""
        begin = channel.stream_stream if kind == "streams" else channel.unary_stream
        request: Any = iter([data]) if kind == "streams" else data
        headers = self._space.api.metadata
        call = begin(f"/{name}")(request, metadata=headers, timeout=timeout_s)
        try:
            for _ in call:
                pass
            self.answered += 1
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return error.code().name, error.details() or ""
        finally:
            call.cancel()
        return "OK", ""


# What defines services has to be loaded before they are found by name.
for _module in pkgutil.iter_modules(pb.__path__, f"{pb.__name__}."):
    importlib.import_module(_module.name)


def input_of(name: str) -> Descriptor | None:
    """None of a method that containerd has and we have no messages of."""
    service, _, method = name.rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return None
    taken: Descriptor = found.methods_by_name[method].input_type
    return taken


def test_a_method_that_never_answers_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        over.wait(30)
        return b""

    handlers = {"Hang": grpc.unary_unary_rpc_method_handler(hang)}
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr(f"{__name__}.ASKED_AGAIN_S", 0.5)
    caller = Caller(SimpleNamespace(api=SimpleNamespace(metadata=())), 1)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            caller.ask(channel, "x.Y/Hang", "stream", b"", "")
            assert caller.faults == [], "a stream may go on"
            caller.ask(channel, "x.Y/Hang", "", b"\1", "")
            assert caller.faults == ["x.Y/Hang: no answer\n01"]
    finally:
        over.set()
        server.stop(0).wait(10)


@pytest.fixture
def space(make_lighterd: Callable[..., Lighterd]) -> Iterator[Space]:
    lighterd = make_lighterd().start()
    with Space(lighterd, NAMESPACE) as space:
        yield space
        for made in space.api.call(containers_pb2, "Containers", "List").containers:
            space.api.call(containers_pb2, "Containers", "Delete", id=made.id)
        for made in space.api.call(sandbox_pb2, "Store", "List").list:
            space.api.call(sandbox_pb2, "Store", "Delete", sandbox_id=made.sandbox_id)
        # Some of it has a label that keeps it.
        for info in space.content_infos():
            space.content("Delete", digest=info.digest)
        for ingest in space.content("ListStatuses").statuses:
            space.content("Abort", ref=ingest.ref)
        for snapshotter in ("overlayfs", "native"):
            left = partial(keys_after_removal, space, snapshotter)
            await_that(lambda left=left: not left(), 60, f"no snapshot of {snapshotter} is left")


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(3, marks=pytest.mark.timeout(600)),
        pytest.param(500, marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
    ],
)
def test_f73_hostile_fields_of_every_method(
    space: Space, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(1 << 32) if rounds > 5 else 1
    record_property("seed", seed)
    caller = Caller(space, seed)
    for _ in range(rounds):
        caller.ask_all()
        assert_served(space)
    record_property("requests", caller.asked)
    assert_no_fault(space, caller)


@pytest.mark.timeout(600)
def test_f73_damaged_requests_of_real_clients(space: Space) -> None:
    """The same in every run."""
    caller = Caller(space, 1)
    caller.ask_damaged(lambda asked: asked >= IN_CI)
    assert_served(space)
    assert_no_fault(space, caller)
    assert caller.answered > IN_CI / 100, "some get past all that looks at them"


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_f73_an_hour_of_damaged_requests(
    space: Space, record_property: Callable[[str, object], None]
) -> None:
    """Others in every run."""
    seed = random.randrange(1 << 40)
    record_property("seed", seed)
    caller = Caller(space, seed)
    end = time.monotonic() + SOAK_S
    while time.monotonic() < end and not caller.faults:
        enough = caller.asked + IN_CI
        caller.ask_damaged(lambda asked, enough=enough: asked >= enough)
        assert_served(space)
    record_property("requests", caller.asked)
    assert_no_fault(space, caller)


def keys_after_removal(space: Space, snapshotter: str) -> list[str]:
    """One that others are made of can be removed when they are."""
    for info in space.snapshot_infos(snapshotter=snapshotter):
        with contextlib.suppress(grpc.RpcError):
            space.snapshots("Remove", snapshotter=snapshotter, key=info.name)
    return [info.name for info in space.snapshot_infos(snapshotter=snapshotter)]


def is_one(data: bytes, kind: type[Message]) -> bool:
    """Whether a parser of messages has nothing against it."""
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


def assert_served(space: Space) -> None:
    with Api(space.api.path) as api:
        assert api.call(version_pb2, "Version", "Version").version == VERSION


def assert_no_fault(space: Space, caller: Caller) -> None:
    assert not caller.faults, "\n".join(caller.faults[:20])
    # gRPC writes down itself that bytes are no message, and that a client went while it was told.
    lines = space.lighterd.log.read_text(errors="replace").splitlines()
    wrong = [
        "\n".join(lines[number : number + 30])
        for number, line in enumerate(lines)
        if "Traceback" in line and not any(own in line for own in OF_GRPC)
    ]
    assert not wrong, "\n\n".join(wrong[:3])


def test_recorded_requests_are_of_their_methods_and_tell_of_no_machine() -> None:
    recorded = requests.read()
    assert len(recorded) > 50
    kinds = dict(methods())
    for name, made in recorded.items():
        taken = input_of(name)
        assert name in kinds and taken is not None, name
        for data in made:
            GetMessageClass(taken).FromString(data)
            assert not re.search(rb"/tmp/|/home/|/root/", data), name


def test_a_damaged_request_has_the_mounts_that_it_had_or_none() -> None:
    """What is mounted is never a path of this machine's."""
    choose = random.Random(1)
    for method in ("tasks.v1.Tasks/Create", "diff.v1.Diff/Apply", "diff.v1.Diff/Diff"):
        name = f"containerd.services.{method}"
        taken = input_of(name)
        assert taken is not None
        kind = GetMessageClass(taken)
        recorded = requests.read()[name]
        assert any(mounts_of(kind.FromString(data)) for data in recorded)
        for data in recorded:
            had = mounts_of(kind.FromString(data))
            for _ in range(200):
                made = kind.FromString(requests.damaged(data, kind, choose, hostile))
                assert mounts_of(made) == had


def mounts_of(message: Message) -> list[bytes]:
    return [
        mount.SerializeToString()
        for field, held in message.ListFields()
        if field.message_type and field.message_type.full_name == requests.LEFT_ALONE
        for mount in held
    ]
