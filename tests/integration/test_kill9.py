"""kill -9, an error or a stop at every fault point of a life (F01 to F22, F42, F43).

A life is run with a fault in it. Whatever breaks is helped as an operator or systemd would (start
the manager again, continue a stopped shim), and the call that failed is repeated until it works.
Afterwards the log must tell a whole story and nothing may be left.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from tests import lives
from tests.harness import Lighterd, await_that
from tests.lives import NO_STDIO, NoAnswer, ask

pytestmark = pytest.mark.timeout(600)  # sweeps

CREATE = [
    *("snapshot.directory-made", "snapshot.recorded", "containers.snapshot-made"),
    *("containers.row-committed", "create.row-committed", "create.bundle-made"),
    *("create.shim-forked", "event.create", "create.done"),
]
START = ["start.asked", "event.start", "start.done"]
EXEC = ["exec.row-committed", "exec.asked", "event.exec-started", "exec.done"]
END = ["restart.stop-noted", "event.exit", "event.exit-committed", "event.closed"]
DELETE = [
    *("delete.closed", "delete.bundle-gone", "delete.row-gone"),
    *("containers.row-gone", "snapshot.row-deleted", "snapshot.removed"),
]
MANAGER = [*CREATE, *START, *EXEC, *END, *DELETE]
SHIM_CREATE = [
    *("shim.claim-written", "shim.claimed", "shim.rootfs-mounted", "shim.runc-created"),
]
SHIM_ASKED = ["shim.start-asked", "shim.exec-asked", "shim.kill-asked", "shim.end-asked"]
SHIM_LATER = [
    *("shim.runc-started", "shim.runc-execed", "shim.init-exited", "shim.exit-record-written"),
    *("shim.runc-deleted", "shim.unmounted", "shim.acknowledged"),
]
SHIM = [*SHIM_CREATE, *SHIM_ASKED, *SHIM_LATER]
# Points of other tests, and one that every small file passes.
ELSEWHERE = {
    *("start.locked", "start.recovered", "start.bound"),
    *("start.completed", "start.tidied"),
    *("file.written", "network.recovering"),
    *("gc.asked", "gc.marked", "gc.rows-deleted", "gc.files-removed", "worker.asked"),
}
# Where code can fail; behind the others comes an act that cannot be undone.
MAY_FAIL = [
    *("create.row-committed", "create.bundle-made", "create.shim-forked", "create.done"),
    *("event.create", *START, *EXEC, "event.exit", "event.closed", "delete.closed"),
    *("delete.bundle-gone", "delete.row-gone", *SHIM_CREATE, *SHIM_ASKED),
]
# What a running container may be asked besides, in the order in which Moves asks.
SHIM_MOVED = [
    *("shim.attach-asked", "shim.pause-asked", "shim.resume-asked", "shim.update-asked"),
    *("shim.resize-asked", "shim.close_stdin-asked", "shim.release_output-asked"),
]
EXACT = {"shim.runc-deleted", "shim.unmounted", "shim.acknowledged"}
LOST = {("lost-shim", 137), ("unknown", 255)}
RETRY_S = 20.0


class Lost(Exception):
    """The container's shim is gone, and the container with it."""


class Life:
    """One container from its definition to its removal, helped on after a fault."""

    def __init__(self, lighterd: Lighterd, image: str, point: str) -> None:
        self.lighterd = lighterd
        self.image = image
        self.point = point
        self.mended = False  # the manager was started anew, without the fault

    def run(self) -> None:
        """Define, create, start, exec, kill, wait, delete, remove; then one that never starts."""
        self.define("a", "sleep", "1000")
        try:
            self.create("a")
            self.start("a")
            self.exec("a")
            self.call("tasks.kill", self.is_stopped, id="a", exec_id="", signal=9, all=False)
            ended = self.call("tasks.wait", id="a", exec_id="")
            if (ended["cause"], ended["exit_status"]) != ("", 137):
                raise Lost
        except Lost:
            self.check_lost("a")
        self.delete("a")
        self.define("b", "true")
        self.create("b")
        self.delete("b")

    def ask(self, call: str, **body: Any) -> Any:
        """One call to the manager. Raises the error that it answers, or NoAnswer."""
        return ask(self.lighterd, call, **body)

    def define(self, name: str, *command: str) -> None:
        self.call(
            "containers.create",
            lambda error: isinstance(error, errors.AlreadyExists),
            id=name,
            image=self.image,
            args=list(command),
        )

    def create(self, name: str) -> None:
        self.call(
            "tasks.create",
            lambda _: lives.task(self.lighterd, name)["status"] == "created",
            **{"id": name, **NO_STDIO},
        )

    def start(self, name: str) -> None:
        self.call(
            "tasks.start", lambda _: lives.task(self.lighterd, name)["status"] == "running", id=name
        )

    def exec(self, name: str) -> None:
        which = {"id": name, "exec_id": "x"}
        exists = lambda error: isinstance(error, errors.AlreadyExists)  # noqa: E731
        self.call("tasks.exec", exists, args=["sh", "-c", "exit 7"], **which, **NO_STDIO)
        assert self.call("tasks.wait", **which)["exit_status"] == 7
        self.call("tasks.delete", self.is_gone, force=False, **which)

    def delete(self, name: str) -> None:
        self.call("tasks.delete", self.is_gone, id=name, exec_id="", force=False)
        self.call("containers.delete", self.is_gone, id=name, force=False)

    def is_gone(self, error: errors.LighterError) -> bool:
        return isinstance(error, errors.NotFound)

    def is_stopped(self, _error: errors.LighterError) -> bool:
        return lives.task(self.lighterd, "a")["status"] == "stopped"

    def call(
        self,
        call: str,
        done: Callable[[errors.LighterError], bool] = lambda _: False,
        **body: Any,
    ) -> Any:
        """Repeat a call until it works, or `done(error)` says that it had worked before."""
        end = time.monotonic() + RETRY_S
        while True:
            try:
                return self.ask(call, **body)
            except NoAnswer as gone:
                self.help(gone)
            except errors.LighterError as error:
                if done(error):
                    return None
                if lives.task(self.lighterd, str(body["id"])).get("cause") and call != "tasks.wait":
                    raise Lost from error
                assert time.monotonic() < end, f"{call} fails for {RETRY_S} s: {error!r}"
                assert not isinstance(error, errors.InvalidArgument), error
                if self.point in SHIM_CREATE and call == "tasks.create" and not self.mended:
                    self.lighterd.restart()  # every new shim would do it again
                    self.mended = True
            time.sleep(0.05)

    def help(self, gone: NoAnswer) -> None:
        if gone.who == "shim":
            began = time.monotonic()
            listed = ask_quickly(self.lighterd)
            assert time.monotonic() - began < lives.LISTED_S
            for row in listed:
                unknown = row["status"] == "unknown" and row["reason"]
                assert unknown or row["exit_status"] is not None, row
            os.kill(gone.pid, signal.SIGCONT)
            return
        if gone.how == "stopped":
            lives.kill_stopped(gone.pid)
        assert self.lighterd.process is not None
        self.lighterd.process.wait()
        self.lighterd.start()

    def check_lost(self, name: str) -> None:
        """Seen within seconds, told once, with the container's processes gone."""
        assert self.point in (*SHIM, *SHIM_MOVED), "only a fault in the shim may cost a container"
        row = lives.await_task(self.lighterd, name, "stopped")
        assert self.point not in EXACT, row
        assert (row["cause"], row["exit_status"]) in LOST, row
        await_that(lambda: lives.process_state(row["pid"]) in ("", "Z"), 30, "its processes end")


class Moves(Life):
    """A container that is asked all else that a shim can be asked; nobody reads what it writes."""

    def run(self) -> None:
        fifo = self.lighterd.base / f"fifo-{self.point}"
        os.mkfifo(fifo)
        try:
            self.define("a", "sh", "-c", "head -c 1000000 /dev/zero; exec sleep 1000")
            with_output = {**NO_STDIO, "stdout": str(fifo)}
            is_created = lambda _: self._status() == "created"  # noqa: E731
            self.call("tasks.create", is_created, id="a", **with_output)
            try:
                self.start("a")
                self._move()
                self.call("tasks.kill", self.is_stopped, id="a", exec_id="", signal=9, all=False)
                self.call("tasks.wait", id="a", exec_id="")
                self.delete("a")
            except Lost:
                self.check_lost("a")
                self.delete("a")
        finally:
            fifo.unlink()

    def _move(self) -> None:
        streams = {"exec_id": "", "stdin": "", "stdout": "", "stderr": ""}
        self.call("tasks.attach", id="a", **streams)
        self.call("tasks.pause", lambda _: self._status() == "paused", id="a")
        self.call("tasks.resume", lambda _: self._status() == "running", id="a")
        self.call("containers.update", id="a", limits={"pids": 77})
        has_none = lambda error: "the process has none" in error.message  # noqa: E731
        self.call("tasks.resize", has_none, id="a", exec_id="", rows=20, cols=80)
        self.call("tasks.close_stdin", id="a", exec_id="")

    def _status(self) -> str | None:
        status: str | None = lives.task(self.lighterd, "a")["status"]
        return status


def ask_quickly(lighterd: Lighterd) -> list[dict[str, Any]]:
    with lighterd.client() as client:
        rows: list[dict[str, Any]] = client.call("tasks", "list", timeout_s=lives.LISTED_S)["tasks"]
        return rows


def sweep(
    lighterd: Lighterd,
    points: list[str],
    action: str,
    life: type[Life] = Life,
    **environ: str,
) -> None:
    """A life per point; all that went wrong is told together."""
    image = lighterd.start().import_busybox()
    lighterd.stop()
    trace = lighterd.base / "trace"
    wrong = []
    for point in points:
        trace.unlink(missing_ok=True)
        lighterd.start(FAULT=f"{point}:{action}", FAULT_TRACE=str(trace), **environ)
        began = time.monotonic()
        try:
            life(lighterd, image, point).run()
            assert f" {point}\n" in trace.read_text(), "the point was not passed"
            lives.leftovers(lighterd)
            assert not (bad := lives.check_history(lives.history(lighterd))), bad
        except (AssertionError, errors.LighterError, NoAnswer) as error:
            wrong.append(f"{point}:{action}: {type(error).__name__} {error}")
            wrong.append(lighterd.log_end(3000))
            try:
                lighterd.clear()
            except Exception as error:
                wrong.append(f"what is behind {point} was not tried: {error!r}")
                break
        print(f"{point}:{action} {time.monotonic() - began:.2f} s")
        lighterd.stop()
    assert not wrong, "\n".join(wrong)


def together(
    lighterd: Lighterd,
    points: Iterable[str],
    action: str,
    life: type[Life] = Life,
    **environ: str,
) -> None:
    """One life, whose shim meets the fault at all of the points, once at each."""
    image = lighterd.start().import_busybox()
    lighterd.stop()
    trace = lighterd.base / "trace"
    plan = ",".join(f"{point}:{action}" for point in points)
    lighterd.start(FAULT=plan, FAULT_TRACE=str(trace), **environ)
    life(lighterd, image, "").run()
    missed = set(points) - {line.split()[1] for line in trace.read_text().splitlines()}
    assert not missed, missed
    lives.leftovers(lighterd)
    assert not (bad := lives.check_history(lives.history(lighterd))), bad


def test_the_points_of_a_life_are_the_ones_swept_here(lighterd: Lighterd, busybox: str) -> None:
    trace = lighterd.base / "trace"
    lighterd.restart(FAULT_TRACE=str(trace))
    Life(lighterd, busybox, "").run()
    lives.leftovers(lighterd)
    passed = {line.split()[1] for line in Path(trace).read_text().splitlines()}
    assert passed - ELSEWHERE == {*MANAGER, *SHIM, *SPAWNER}


PHASES = {"create": CREATE, "start": START, "exec": EXEC, "end": END, "delete": DELETE}


@pytest.mark.parametrize("phase", PHASES)
def test_f01_f22_the_manager_is_killed(make_lighterd: Callable[..., Lighterd], phase: str) -> None:
    sweep(make_lighterd(), PHASES[phase], "abort")


@pytest.mark.parametrize("phase", PHASES)
def test_f01_f22_the_manager_stops_and_is_killed(
    make_lighterd: Callable[..., Lighterd], phase: str
) -> None:
    sweep(make_lighterd(), PHASES[phase], "stop")


def test_a_call_that_fails_inside_the_manager_can_be_repeated(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    sweep(make_lighterd(), [point for point in MAY_FAIL if point in MANAGER], "error")


SHIM_PHASES = {
    "create": SHIM_CREATE,
    "asked": SHIM_ASKED,
    "later": SHIM_LATER,
    "moved": SHIM_MOVED,
}


def life_of(phase: str) -> type[Life]:
    return Moves if phase == "moved" else Life


@pytest.mark.parametrize("phase", SHIM_PHASES)
def test_f42_the_shim_is_killed(make_lighterd: Callable[..., Lighterd], phase: str) -> None:
    sweep(make_lighterd(), SHIM_PHASES[phase], "abort", life_of(phase))


@pytest.mark.parametrize("phase", SHIM_PHASES)
def test_f43_the_shim_is_stopped_and_goes_on(
    make_lighterd: Callable[..., Lighterd], phase: str
) -> None:
    # Before it has claimed its task a shim has no title to be found by.
    titled = [point for point in SHIM_PHASES[phase] if point != "shim.claim-written"]
    sweep(make_lighterd(), titled, "stop", life_of(phase))


def test_a_call_that_fails_inside_the_shim_can_be_repeated(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    sweep(make_lighterd(), [point for point in MAY_FAIL if point in SHIM], "error")


def test_what_a_shim_is_asked_besides_can_be_repeated_when_it_fails(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    together(make_lighterd(), SHIM_MOVED, "error", Moves)


# As production makes its shims: of functions that the spawner has played with before (shim/copies).
REHEARSED = {"FAULT_REHEARSED": "1"}


@pytest.mark.parametrize(
    "points",
    [["shim.runc-execed", "shim.init-exited"], pytest.param(SHIM, marks=pytest.mark.soak)],
    ids=["some", "all"],
)
def test_f42_a_rehearsed_shim_is_killed(
    make_lighterd: Callable[..., Lighterd], points: list[str]
) -> None:
    sweep(make_lighterd(), points, "abort", **REHEARSED)


def test_a_call_that_fails_inside_a_rehearsed_shim_can_be_repeated(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    together(make_lighterd(), SHIM_ASKED, "error", **REHEARSED)


# Each spawner carries out one order, and dies over the next.
SPAWNER = ["spawner.asked", "spawner.forked"]


@pytest.mark.parametrize("action", ["abort:2", pytest.param("abort:3", marks=pytest.mark.soak)])
def test_the_spawner_is_killed_over_an_order(
    make_lighterd: Callable[..., Lighterd], action: str
) -> None:
    sweep(make_lighterd(), SPAWNER, action)
