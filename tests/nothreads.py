"""A process that may start no further thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

NO_ROOM = 1 << 46  # half of all that a process can address


@contextmanager
def no_threads() -> Iterator[None]:
    """Within the block, starting one fails as above a limit of processes: no stack is to be had."""
    before = threading.stack_size(NO_ROOM)
    try:
        yield
    finally:
        threading.stack_size(before)
