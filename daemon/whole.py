"""Steps that must not be cut in two by a cancelled caller."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(steps: Coroutine[Any, Any, T]) -> T:
    """Run `steps` to their end even when the caller is cancelled, which then happens after them.

    Work in a thread goes on when its waiter is cancelled; this keeps the locks around it held.
    """
    task = asyncio.ensure_future(steps)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at: the caller hears of its cancellation instead
        raise
