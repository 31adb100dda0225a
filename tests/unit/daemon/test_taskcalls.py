"""containerd's Tasks above a task in a certain state: what is answered, and in whose words."""

import asyncio
from typing import Any, cast

import pytest

from lighter.daemon.grpc.calls import Call, Context
from lighter.daemon.grpc.pb import tasks_pb2 as pb
from lighter.daemon.grpc.pb.task_types_pb2 import Status
from lighter.daemon.grpc.tasks import TasksService
from lighter.daemon.tasks.entry import Entry, Exec
from lighter.proto import states
from lighter.proto.errors import FailedPrecondition, NotFound, Unknown

SIZE = {"width": 80, "height": 24}


class Headers:
    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("containerd-namespace", "ns")]


class Shimless:
    """A task whose shim answers nothing but that there is no such thing."""

    def __init__(self, state: str, exec_state: str = "", *, terminal: bool = False) -> None:
        self.entry = Entry("ns", "c", "0" * 16, state, "", "", 0, terminal=terminal)
        if exec_state:
            self.entry.execs["e"] = Exec("e", exec_state, terminal, 0)
        self.asked: list[str] = []
        one: Any = self
        self.service = TasksService(one, one, one, one, one, one)

    def find(self, _namespace: str, _id: str) -> Entry:
        return self.entry

    def stdio(self, _namespace: str, _id: str, _exec_id: str) -> dict[str, Any]:
        return {}

    async def pause(self, _namespace: str, _id: str) -> None:
        states.advance(states.TASK, self.entry.state, "pause", "it")

    async def resume(self, _namespace: str, _id: str) -> None:
        states.advance(states.TASK, self.entry.state, "resume", "it")

    async def make(self, _call: Call, _request: Any) -> None:
        states.advance(states.TASK, self.entry.state, "checkpoint", "it")

    async def resize(self, *_size: Any) -> None:
        self.asked.append("resize")
        raise FailedPrecondition("resize terminal: the process has none")

    async def close_stdin(self, *_of: Any) -> None:
        self.asked.append("close_stdin")
        raise FailedPrecondition("call shim of task c: the task has ended")


def call() -> Call:
    return Call(cast(Context, Headers()))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            states.CREATED,
            {
                "pause": "cannot pause task in created state",
                "resume": "cannot resume task in created state",
                "checkpoint": "cannot checkpoint a task in created state",
            },
        ),
        (states.RUNNING, {"resume": "cannot resume a running process"}),
        (states.PAUSED, {"pause": "cannot pause a paused container"}),
        (
            states.STOPPED,
            {
                "pause": "cannot pause a stopped container",
                "resume": "cannot resume a stopped container",
                "checkpoint": "cannot checkpoint a stopped container",
            },
        ),
    ],
)
def test_a_step_that_does_not_fit_is_refused_in_containerds_words(
    state: str, words: dict[str, str]
) -> None:
    service = Shimless(state).service
    steps = {
        "pause": lambda: service.pause(call(), pb.PauseTaskRequest(container_id="c")),
        "resume": lambda: service.resume(call(), pb.ResumeTaskRequest(container_id="c")),
        "checkpoint": lambda: service.checkpoint(
            call(), pb.CheckpointTaskRequest(container_id="c")
        ),
    }
    for step, said in words.items():
        with pytest.raises(Unknown) as refused:
            asyncio.run(steps[step]())
        assert refused.value.message == said


@pytest.mark.parametrize("exec_id", ["", "e"])
@pytest.mark.parametrize("state", [states.RUNNING, states.STOPPED])
def test_the_size_of_a_terminal_that_there_is_not(state: str, exec_id: str) -> None:
    request = pb.ResizePtyRequest(container_id="c", exec_id=exec_id, **SIZE)
    asyncio.run(Shimless(state, state).service.resize_pty(call(), request))


def test_the_size_of_a_terminal_that_is_not_there_yet() -> None:
    """Its client asks again when it hears of that."""
    service = Shimless(states.RUNNING, states.RUNNING, terminal=True).service
    for exec_id in ("", "e"):
        request = pb.ResizePtyRequest(container_id="c", exec_id=exec_id, **SIZE)
        with pytest.raises(FailedPrecondition):
            asyncio.run(service.resize_pty(call(), request))
    with pytest.raises(NotFound, match="process does not exist x"):
        request = pb.ResizePtyRequest(container_id="c", exec_id="x", **SIZE)
        asyncio.run(service.resize_pty(call(), request))


def test_an_input_that_is_closed_with_its_process() -> None:
    ended = Shimless(states.STOPPED, states.STOPPED)
    for exec_id in ("", "e"):
        request = pb.CloseIORequest(container_id="c", exec_id=exec_id, stdin=True)
        asyncio.run(ended.service.close_io(call(), request))
    assert ended.asked == []
    created = Shimless(states.CREATED)
    with pytest.raises(FailedPrecondition):
        asyncio.run(
            created.service.close_io(call(), pb.CloseIORequest(container_id="c", stdin=True))
        )
    assert created.asked == ["close_stdin"]


@pytest.mark.parametrize(
    ("task", "exec_", "shown"),
    [
        (states.RUNNING, states.RUNNING, Status.RUNNING),
        (states.PAUSED, states.RUNNING, Status.PAUSED),
        (states.PAUSED, states.ADDED, Status.CREATED),
        (states.PAUSED, states.STOPPED, Status.STOPPED),
    ],
)
def test_a_process_is_paused_with_its_task(task: str, exec_: str, shown: Any) -> None:
    service = Shimless(task, exec_).service
    request = pb.GetRequest(container_id="c", exec_id="e")
    assert asyncio.run(service.get(call(), request)).process.status == shown
