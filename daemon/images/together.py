"""Several pieces of work that succeed or fail as one."""

import asyncio
from collections.abc import Sequence
from typing import Any


async def all_of(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    """Wait for all; the first failure in the list's order is raised once the rest has ended."""
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    failures = [task.exception() for task in tasks if not task.cancelled()]
    for failure in failures:
        if failure is not None:
            raise failure
