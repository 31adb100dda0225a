"""The loop: order of timers, futures, limits, errors, and that nothing wakes it for nothing."""

import errno
import os
import time
from pathlib import Path

import pytest

from lighter.proto.errors import DeadlineExceeded
from lighter.shim.loop import READ, Future, Loop


def run(loop: Loop, work: object) -> object:
    """Run a coroutine to its end; what it returned."""
    results: list[object] = []

    async def whole() -> None:
        try:
            results.append(await work)  # type: ignore[misc]
        finally:
            loop.stop()

    loop.spawn(whole())
    loop.run()
    return results[0] if results else None


def test_timers_fire_in_the_order_of_their_times(loop: Loop) -> None:
    fired: list[str] = []
    loop.call_later(0.02, lambda: fired.append("second"))
    loop.call_later(0.03, loop.stop)
    loop.call_later(0.01, lambda: fired.append("first"))
    loop.call_later(0.015, lambda: fired.append("never")).cancel()
    loop.run()
    assert fired == ["first", "second"]


def test_a_future_hands_its_value_to_everyone_and_keeps_the_first(loop: Loop) -> None:
    future = Future()
    seen: list[object] = []

    async def wait() -> None:
        seen.append(await future)

    loop.spawn(wait())
    loop.spawn(wait())
    loop.call_soon(lambda: future.set(1))
    loop.call_soon(lambda: future.set(2))
    loop.call_soon(lambda: future.fail(ValueError()))
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert seen == [1, 1]


def test_a_failed_future_raises_where_it_is_awaited(loop: Loop) -> None:
    future = Future()

    async def wait() -> str:
        try:
            await future
        except ValueError as err:
            return str(err)
        return "nothing"

    loop.call_soon(lambda: future.fail(ValueError("why")))
    assert run(loop, wait()) == "why"


@pytest.mark.parametrize("set_first", [False, True], ids=["set later", "set before"])
def test_within_returns_what_comes_in_time(loop: Loop, set_first: bool) -> None:
    future = Future()
    if set_first:
        future.set(7)
    else:
        loop.call_later(0.01, lambda: future.set(7))
    assert run(loop, loop.within(future, 5, "wait")) == 7


def test_within_raises_when_it_comes_too_late(loop: Loop) -> None:
    async def wait() -> str:
        try:
            await loop.within(Future(), 0.01, "wait for it")
        except DeadlineExceeded as err:
            return err.message
        return "it came"

    assert run(loop, wait()) == "wait for it: no answer within 0.01 s"


def test_a_stop_before_the_poll_is_not_slept_over(loop: Loop) -> None:
    # Nothing is watched and no timer is set: a poll would wait for ever.
    loop.call_soon(loop.stop)
    loop.run()


def test_errors_are_reported_and_the_loop_goes_on() -> None:
    errors: list[BaseException] = []
    loop = Loop(errors.append)
    read_end, write_end = os.pipe()

    def fail(*_args: object) -> None:
        if len(errors) == 4:
            loop.stop()
        raise ValueError(len(errors))

    async def fail_later() -> None:
        fail()

    loop.call_soon(fail)
    loop.call_later(0, fail)
    loop.spawn(fail_later())
    loop.watch(read_end, READ, fail)
    os.write(write_end, b"x")
    loop.run()
    loop.close()
    os.close(read_end)
    os.close(write_end)
    assert [error.args for error in errors] == [(n,) for n in range(len(errors))]
    assert len(errors) >= 5


def test_an_event_is_not_given_to_a_new_owner_of_the_descriptor(loop: Loop) -> None:
    """Both pipes are readable in one round; the first callback re-uses the second's number."""
    one, other = os.pipe(), os.pipe()
    os.write(one[1], b"1")
    os.write(other[1], b"2")
    calls: list[str] = []

    def close_and_replace(mine: tuple[int, int], its: tuple[int, int]) -> None:
        if calls:
            loop.stop()
            return
        calls.append("first")
        os.read(mine[0], 1)
        loop.unwatch(its[0])
        quiet = os.pipe()
        os.dup2(quiet[0], its[0])
        loop.watch(its[0], READ, lambda _events: calls.append("stranger"))
        loop.call_later(0.02, loop.stop)

    loop.watch(one[0], READ, lambda _events: close_and_replace(one, other))
    loop.watch(other[0], READ, lambda _events: close_and_replace(other, one))
    loop.run()
    assert calls == ["first"]


class Scarce:
    """An epoll that takes nothing new while `error` is set."""

    def __init__(self, loop: Loop) -> None:
        self._epoll = loop._epoll
        self.error = 0
        loop._epoll = self  # type: ignore[assignment]

    def register(self, fd: int, events: int) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_what_the_kernel_has_no_memory_for_is_watched_once_it_has(loop: Loop, error: int) -> None:
    epoll = Scarce(loop)
    epoll.error = error
    pipes = [os.pipe() for _ in range(3)]
    came: list[str] = []
    for number, (read_end, write_end) in enumerate(pipes):
        os.write(write_end, b"x")
        loop.watch(read_end, READ, lambda _events: came.append("too early"))
        loop.watch(read_end, READ, lambda _events, n=number: came.append(f"pipe {n}"))  # type: ignore[misc]
    loop.unwatch(pipes[1][0])  # as it would be closed
    loop.call_later(0.25, loop.stop)
    loop.run()
    assert came == [] and len(loop._timers) == 1, "it is asked again, by one timer"
    epoll.error = 0
    end = time.monotonic() + 20
    while set(came) != {"pipe 0", "pipe 2"}:
        assert time.monotonic() < end, came
        loop.call_later(0.01, loop.stop)
        loop.run()
    for read_end, write_end in pipes:
        loop.unwatch(read_end)
        os.close(read_end)
        os.close(write_end)


def test_what_cannot_be_watched_is_refused(loop: Loop, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        loop.watch(file.fileno(), READ, lambda _events: None)
    assert loop._wait_s() == -1


def test_an_idle_loop_has_no_deadline(loop: Loop) -> None:
    loop.call_later(1000, lambda: None).cancel()
    assert loop._wait_s() == -1
