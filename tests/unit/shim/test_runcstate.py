"""A start and a delete without the runtime: only where there is nothing but runc's own files, no
hook, and cgroups that are empty.
"""

import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.proto.errors import DeadlineExceeded, FailedPrecondition
from lighter.shim import files, runcstate
from lighter.shim.cgroup import Cgroup
from lighter.shim.loop import Future, Loop

# As runc writes it, with what stands between the words left out.
STATE = '{"config":{"Hooks":{"poststart":null,"poststop":null}},"intel_rdt_path":""}'


def leave(directory: Path, *names: str, state: str = STATE) -> str:
    directory.mkdir()
    for name in names:
        (directory / name).write_text(state if name == "state.json" else "")
    return str(directory)


@pytest.mark.parametrize("names", [("state.json",), ("state.json", "exec.fifo")])
def test_state_and_cgroups_are_removed(tmp_path: Path, names: tuple[str, ...]) -> None:
    state = leave(tmp_path / "state", *names)
    groups = [leave(tmp_path / name) for name in ("cpu", "memory", "beside")]
    # Two controllers may share one hierarchy.
    v1 = {"cpu": groups[0], "cpuacct": groups[0], "memory": groups[1]}
    assert runcstate.delete(state, Cgroup(v1, "", groups[2]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [(), ("status",), ("state.json", "config.json")])
def test_another_runtimes_state_is_left_to_it(tmp_path: Path, names: tuple[str, ...]) -> None:
    state = leave(tmp_path / "state", *names)
    group = leave(tmp_path / "group")
    assert not runcstate.delete(state, Cgroup({}, group))
    assert Path(group).exists()
    assert sorted(path.name for path in Path(state).iterdir()) == sorted(names)


def test_no_state_is_left_to_the_runtime(tmp_path: Path) -> None:
    assert not runcstate.delete(str(tmp_path / "state"), Cgroup({}, ""))


def test_what_has_no_cgroup_that_we_know_is_left_to_the_runtime(tmp_path: Path) -> None:
    state = leave(tmp_path / "state", "state.json")
    assert not runcstate.delete(state, Cgroup({}, ""))
    assert Path(state, "state.json").exists()


def test_a_cgroup_that_is_not_empty_is_left_to_the_runtime(tmp_path: Path) -> None:
    state = leave(tmp_path / "state", "state.json")
    group = leave(tmp_path / "group")
    leave(tmp_path / "group" / "deeper")
    assert not runcstate.delete(state, Cgroup({"memory": group}, ""))
    assert Path(state, "state.json").exists()


@pytest.mark.parametrize(
    "state",
    [
        STATE.replace('"poststop":null', '"poststop":[{"path":"/bin/true"}]'),
        STATE.replace('"intel_rdt_path":""', '"intel_rdt_path":"/sys/fs/resctrl/c"'),
        STATE.replace('"poststop":null', r'"a":"\"poststop\":null"'),
        "{}",
        "",
    ],
    ids=["hook", "rdt", "a text of the same words", "unknown", "empty"],
)
def test_a_container_with_more_to_do_is_left_to_the_runtime(tmp_path: Path, state: str) -> None:
    directory = leave(tmp_path / "state", "state.json", state=state)
    group = leave(tmp_path / "group")
    assert not runcstate.delete(directory, Cgroup({"memory": group}, ""))
    assert Path(group).exists()
    assert Path(directory, "state.json").exists()


def created(directory: Path, state: str = STATE) -> Path:
    """As runc leaves it of a container that is to be started."""
    leave(directory, "state.json", state=state)
    os.mkfifo(directory / "exec.fifo")
    return directory


def started(
    directory: Path, *, ended: bool = False, timeout_s: float = 30, beside: Callable[[], None]
) -> bool:
    """The outcome, with `beside` done while it waits, in a thread as init is another process."""
    loop, end = Loop(pytest.fail), Future()
    if ended:
        end.set((0, 1))
    done = loop.spawn(runcstate.start(loop, str(directory), end, timeout_s))
    done.when_done(loop.stop)
    loop.on_error = lambda _error: None
    thread = threading.Thread(target=beside)
    thread.start()
    loop.run()
    thread.join()
    loop.close()

    async def result() -> bool:
        return bool(await done)

    try:
        result().send(None)
    except StopIteration as stop:
        return bool(stop.value)
    raise AssertionError("it is not over")


def init_of(directory: Path) -> Callable[[], None]:
    """What init does: it waits for a reader, and writes one byte."""

    def go() -> None:
        fd = os.open(directory / "exec.fifo", os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)

    return go


def test_init_is_let_go_as_by_a_start(tmp_path: Path) -> None:
    state = created(tmp_path / "state")
    assert started(state, beside=init_of(state))
    assert [path.name for path in state.iterdir()] == ["state.json"]


def test_one_that_went_and_has_ended_was_started(tmp_path: Path) -> None:
    state = created(tmp_path / "state")
    before = os.open(state / "exec.fifo", os.O_RDWR)  # its byte is there before anybody looks
    os.write(before, b"0")
    try:
        assert started(state, ended=True, beside=lambda: None)
    finally:
        os.close(before)


def test_one_that_ends_before_it_goes_is_refused(tmp_path: Path) -> None:
    state = created(tmp_path / "state")
    with pytest.raises(FailedPrecondition, match="it has ended already"):
        started(state, ended=True, beside=lambda: None)
    assert (state / "exec.fifo").exists()


def test_one_that_never_goes_is_not_waited_for_without_end(tmp_path: Path) -> None:
    state = created(tmp_path / "state")
    with pytest.raises(DeadlineExceeded, match="start container process"):
        started(state, timeout_s=0.05, beside=lambda: None)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: (state / "exec.fifo").unlink(),
        lambda state: (state / "status").touch(),
        lambda state: (state / "state.json").write_text(STATE.replace("null,", "[{}],", 1)),
        lambda state: (state / "state.json").unlink(),
    ],
    ids=["no FIFO", "another runtime's file", "a hook", "no state"],
)
def test_what_is_not_that_simple_is_left_to_the_runtime(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    state = created(tmp_path / "state")
    change(state)
    names = {path.name for path in state.iterdir()}
    assert not started(state, beside=lambda: None)
    assert {path.name for path in state.iterdir()} == names


@pytest.mark.parametrize("before", [0, 2040, 2047, 2048, 5000])
def test_words_are_found_wherever_they_stand(tmp_path: Path, before: int) -> None:
    """Across the pieces in which a file is read too; all of them, in any order."""
    path = tmp_path / "state.json"
    path.write_bytes(b"." * before + b"the second word" + b"." * 4096 + b"first")
    assert files.holds(str(path), b"first", b"the second word")
    assert not files.holds(str(path), b"first", b"the third word")


def test_a_state_that_is_read_leaves_no_memory_behind(tmp_path: Path) -> None:
    """runc's has 60 KB, which the allocator would keep for a shim that needs it once."""
    (tmp_path / "state.json").write_bytes(b"." * (1 << 20) + runcstate.NO_HOOK_AT_START)
    tracemalloc.start()
    try:
        assert files.holds(str(tmp_path / "state.json"), runcstate.NO_HOOK_AT_START)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024
    finally:
        tracemalloc.stop()
