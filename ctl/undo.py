"""What is taken back when a block of work ends early.

As contextlib.ExitStack, which with all that it loads takes 2 ms of a command's 25.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Undo:
    """Calls what was added, the last first, when its block is left before `keep`."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Called at the end of the block."""
        self._steps.append(step)

    def keep(self) -> None:
        """Everything went well: take nothing back."""
        self._steps.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self._steps:
                self._steps.pop()()
        finally:
            if self._steps:  # one has failed: the rest have their turn all the same
                self.__exit__(kind, error, trace)
