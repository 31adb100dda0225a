"""A real shim led through random ways of its life, beside the table of proto/states.

The rules do what managers and kernels do: ask, ask twice, ask for a manager that is gone, vanish,
come back, leave events unacknowledged, end processes. What the table allows works, what it does not
is refused and changes nothing; and whatever happened, each process is told to have ended once.
"""

import itertools
import os
import select
import signal
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lighter.proto import codec, errors, states
from tests.unit.shim import runtimes
from tests.unit.shim.manager import FakeManager

INIT = ""
STREAMS = dict.fromkeys(("stdin", "stdout", "stderr"), "")
STEPS: dict[str, dict[str, Any]] = {
    "start": {},
    "pause": {},
    "resume": {},
    "update": {"resources": "/no/resources"},
    "checkpoint": {"image": "/no/image", "leave_running": True},
    "attach": {"exec_id": INIT, **STREAMS},
}
EXEC = {"process": "x", "console": "", "terminal": False, "rows": 0, "cols": 0, **STREAMS}
NAMES = st.sampled_from(["x", "y"])
NUMBERS = itertools.count()


class Machine(RuleBasedStateMachine):
    """`state` is init's by the table; `execs` the pids of those that run; `told` what must be."""

    manager: ClassVar[FakeManager]
    runtime: ClassVar[str]

    @initialize()
    def create(self) -> None:
        self.manager.acknowledges = True
        self.shim = self.manager.run(f"c{next(NUMBERS)}", self.runtime)
        self.init_pid = self.shim.event("create")["pid"]
        self.state = states.CREATED
        self.execs: dict[str, int] = {}
        self.told: Counter[tuple[str, str]] = Counter({("create", INIT): 1})
        self.here = True
        self.gone = False

    def answers(self) -> bool:
        return self.here and not self.gone

    # -- what a manager asks

    @precondition(answers)
    @rule(step=st.sampled_from(sorted(STEPS)))
    def ask_for_step(self, step: str) -> None:
        after = states.TASK.get((self.state, step))
        if after is None:
            with pytest.raises(errors.FailedPrecondition):
                self.shim.call(step, **STEPS[step])
            return
        self.shim.call(step, **STEPS[step])
        self.state = after
        topic = {"pause": "paused", "resume": "resumed", "start": "start"}.get(step)
        if topic:
            self.told[topic, INIT] += 1

    @precondition(answers)
    @rule(name=NAMES, times=st.sampled_from([1, 1, 2]))
    def execute(self, name: str, times: int) -> None:
        """Asked twice under one ident, it is done once and answered once."""
        ident = self.manager.next_ident()
        generation, body = self.manager.generation, {"exec_id": name, **EXEC}
        frames = codec.encode(codec.Request(generation, ident, "task", "exec", None, {}, body))
        for _ in range(times):
            self.manager.send(self.shim.incarnation, frames)
        if (self.state, "exec") not in states.TASK:
            with pytest.raises(errors.FailedPrecondition):
                self.manager.answer(ident)
        elif name in self.execs:
            with pytest.raises(errors.AlreadyExists):
                self.manager.answer(ident)
        else:
            self.execs[name] = self.manager.answer(ident)["pid"]
            self.told["exec-started", name] += 1
            with pytest.raises(errors.NotFound):  # what is asked next is answered next
                self.shim.call("attach", exec_id="nobody", **STREAMS)
            assert ident not in self.manager.answers, "it was answered twice"
        self.manager.answers.clear()

    @precondition(answers)
    @rule(name=NAMES)
    def kill_exec(self, name: str) -> None:
        if name not in self.execs:
            with pytest.raises(errors.NotFound):
                self.shim.kill(exec_id=name)
            return
        self.shim.kill(exec_id=name)
        self.has_ended(name)

    @precondition(answers)
    @rule(everyone=st.booleans())
    def kill(self, everyone: bool) -> None:
        if self.state == states.STOPPED:
            with pytest.raises(errors.FailedPrecondition):
                self.shim.kill(everyone=everyone)
            return
        self.shim.kill()
        self.has_ended(INIT)

    @precondition(answers)
    @rule()
    def ask_as_the_manager_before(self) -> None:
        """It is not obeyed and not answered."""
        ident = self.manager.next_ident()
        body = {"exec_id": INIT, "signal": signal.SIGKILL, "all": False}
        before = self.manager.generation - 1
        request = codec.Request(before, ident, "task", "kill", None, {}, body)
        self.manager.send(self.shim.incarnation, codec.encode(request))
        with pytest.raises(errors.NotFound):
            self.shim.call("attach", exec_id="nobody", **STREAMS)
        assert ident not in self.manager.answers

    @precondition(lambda self: self.gone)
    @rule()
    def live_again(self) -> None:
        """The same shim's spawner and manager have another container."""
        self.close()
        self.create()

    # -- what happens to a manager

    @precondition(answers)
    @rule(acknowledges=st.booleans())
    def acknowledge_or_not(self, acknowledges: bool) -> None:
        self.manager.acknowledges = acknowledges
        if acknowledges:
            self.catch_up()

    def catch_up(self) -> None:
        self.manager.acknowledge(self.shim.incarnation, len(self.heard()))
        self.await_told()

    @precondition(answers)
    @rule()
    def vanish(self) -> None:
        self.manager.vanish()
        self.here = False

    @precondition(lambda self: not self.here)
    @rule()
    def come_back(self) -> None:
        self.manager.come_back()
        self.here = True
        self.manager.until(self.says_hello, "it says hello")
        hello = self.says_hello()[0]
        assert hello.identity["state"] == self.state
        assert self.execs.items() <= hello.identity["execs"].items()
        self.await_told()

    def says_hello(self) -> list[codec.Hello]:
        hellos = self.manager.hellos
        return [hello for name, hello in hellos if name == self.shim.incarnation]

    # -- what happens to processes

    @precondition(lambda self: self.state != states.STOPPED)
    @rule(data=st.data())
    def process_dies(self, data: st.DataObject) -> None:
        """By itself, whether or not somebody hears it."""
        name = data.draw(st.sampled_from([INIT, *sorted(self.execs)]))
        pid = self.execs[name] if name else self.init_pid
        os.kill(pid, signal.SIGKILL)
        # Who comes back looks at the states: the shim has reaped by then.
        self.manager.until(lambda: not Path(f"/proc/{pid}").exists(), f"{pid} is reaped")
        self.has_ended(name)

    def has_ended(self, name: str) -> None:
        ended = [name] if name else [*self.execs, INIT]
        for each in ended:
            self.told["exit", each] += 1
            self.execs.pop(each, None)
        if name == INIT:
            self.state = states.STOPPED
            self.told["closed", INIT] += 1
        if self.here:
            self.await_told()

    def await_told(self) -> None:
        """Until all is told that must be; a shim that is heard to its end is gone then."""
        self.manager.until(lambda: Counter(self.heard()) >= self.told, f"{self.told} are told")
        if self.manager.acknowledges and self.state == states.STOPPED:
            self.shim.wait_end()
            self.gone = True

    def heard(self) -> list[tuple[str, str]]:
        """(topic, exec) of each event in order, told again or not. Events that change are wrong."""
        by_sequence: dict[int, Any] = {}
        for incarnation, event in self.manager.events:
            if incarnation == self.shim.incarnation:
                told = event._replace(generation=0)
                assert by_sequence.setdefault(event.sequence, told) == told
        assert list(by_sequence) == list(range(1, len(by_sequence) + 1)), "told out of order"
        return [
            (event.topic.rpartition("/")[2], event.body.get("exec_id", INIT))
            for event in by_sequence.values()
        ]

    def teardown(self) -> None:
        self.manager.acknowledges = True
        try:
            if not self.here:
                self.come_back()
            elif not self.gone:
                self.catch_up()
            if self.state != states.STOPPED:
                self.shim.call("end")
                self.has_ended(INIT)
            self.close()
        except BaseException:
            if not self.here:
                self.manager.come_back()
            self.forget()
            raise

    def close(self) -> None:
        self.await_told()
        self.judge()
        self.forget()

    def forget(self) -> None:
        self.shim.close()
        del self.manager.shims[self.shim.incarnation]
        self.manager.events.clear()

    def judge(self) -> None:
        heard = self.heard()
        assert Counter(heard) == self.told
        assert heard[0] == ("create", INIT)
        assert heard[-2:] == [("exit", INIT), ("closed", INIT)]
        for name in {name for _, name in heard if name}:
            topics = [topic for topic, its_name in heard if its_name == name]
            assert topics == ["exec-started", "exit"] * (len(topics) // 2)
        exits = [event.body for _, event in self.manager.events if event.topic == "/tasks/exit"]
        assert {body["exit_status"] for body in exits} == {128 + signal.SIGKILL}
        assert not Path(self.shim.order["exit_record"]).exists()
        assert self.manager.reports() == ""


def test_what_one_that_has_ended_told_twice_is_heard_in_the_life_of_the_next(
    manager: FakeManager, tmp_path: Path
) -> None:
    """A shim ends when it is acknowledged, whether or not all that it has said was read."""
    runtime = runtimes.fake(tmp_path / "runtime")
    manager.acknowledges = False
    first = manager.run("first", runtime)
    first.kill()
    first.event("closed")
    manager.vanish()
    manager.come_back()
    manager.until(lambda: manager.hellos, "it says hello, and then everything again")
    manager.acknowledge(first.incarnation, 3)
    assert select.select([first.pidfd], [], [], 20)[0], "it ends"
    manager.acknowledges = True
    manager.run("second", runtime).event("create")
    assert [incarnation for incarnation, _ in manager.events].count(first.incarnation) == 6


@pytest.mark.timeout(0)
@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.soak)])
def test_a_shim_goes_the_ways_of_the_table(
    manager: FakeManager, tmp_path: Path, examples: int
) -> None:
    nothing = {"pause": "", "resume": "", "update": "", "checkpoint": ""}
    Machine.manager = manager
    Machine.runtime = runtimes.fake(tmp_path / "runtime", exec=runtimes.LIVES, **nothing)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
