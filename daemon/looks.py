"""Looks at paths that callers name, which may be on a network file system that no longer answers,
and at processes that wait for one.

stat(2) there hangs for ever, with whoever made it: so each look has a thread of its own, which
dies with the manager, and a deadline. The executor that the rest of the manager uses is not for
it: a few hanging looks would fill that up.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from lighter.proto.errors import DeadlineExceeded, ResourceExhausted

LOOK_S = 5.0
HANGING = 32

T = TypeVar("T")


class Looks:
    """Counts those that hang: above HANGING no further one is tried."""

    def __init__(self, look_s: float = LOOK_S, who: str = "the host's file system") -> None:
        self._who = who
        self._look_s = look_s
        self.under_way = 0

    async def at(self, what: str, look: Callable[[], T]) -> T:
        """What `look` returns or raises, from a thread. `what` is for errors: "use /mnt/data".

        Raises DeadlineExceeded; ResourceExhausted when too many of them hang.
        """
        if self.under_way >= HANGING:
            raise ResourceExhausted(
                f"{what}: {self.under_way} looks hang already: {self._who} does not answer"
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def ended(result: T | None, error: BaseException | None) -> None:
            self.under_way -= 1
            if done.done():
                return  # nobody waits any more
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, error = None, None
            try:
                result = look()
            except BaseException as err:
                error = err
            try:
                loop.call_soon_threadsafe(ended, result, error)
            except RuntimeError:
                pass  # the manager has stopped meanwhile

        thread = threading.Thread(target=work, name="look", daemon=True)
        try:
            thread.start()
        except RuntimeError as err:  # no further process is allowed
            raise ResourceExhausted(f"{what}: {err}") from err
        self.under_way += 1
        try:
            async with asyncio.timeout(self._look_s):
                return await done
        except TimeoutError as err:
            if not done.cancelled():
                raise  # it is the look's own
            raise DeadlineExceeded(
                f"{what}: {self._who} has not answered in {self._look_s:g} s"
            ) from err
