"""The caller's half of a conversation: which answers are still expected.

Sans-IO and without a loop, so that the manager's asyncio client, the blocking one of `ctl` and a
test use the same rules: an answer is matched by (generation, ident), an answer that nobody waits
for is counted and dropped, and when the peer is gone every waiting call is failed, none is left.
"""

from __future__ import annotations

from lighter.proto.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic, TypeVar
else:
    from lighter.proto.light import Generic, TypeVar

Slot = TypeVar("Slot")

MAX_OUTSTANDING = 16


class PendingCalls(Generic[Slot]):
    """Calls to one peer that wait for an answer; `Slot` is whatever the caller waits with."""

    __slots__ = ("_limit", "_slots", "dropped")

    def __init__(self, limit: int = MAX_OUTSTANDING) -> None:
        self._slots: dict[tuple[int, int], Slot] = {}
        self._limit = limit
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._slots)

    def open(self, generation: int, ident: int, slot: Slot, what: str) -> None:
        """Expect an answer. Raises Unavailable when too many wait for one already."""
        if len(self._slots) >= self._limit:
            raise Unavailable(f"{what}: {len(self._slots)} calls to it wait for an answer already")
        self._slots[generation, ident] = slot

    def get(self, generation: int, ident: int) -> Slot | None:
        """The slot that a stream item belongs to; None (counted) for a stranger."""
        slot = self._slots.get((generation, ident))
        if slot is None:
            self.dropped += 1
        return slot

    def close(self, generation: int, ident: int) -> Slot | None:
        """The slot that a last answer belongs to, no longer expected after this."""
        slot = self._slots.pop((generation, ident), None)
        if slot is None:
            self.dropped += 1
        return slot

    def forget(self, generation: int, ident: int) -> None:
        """The caller gave up; a late answer will be dropped."""
        self._slots.pop((generation, ident), None)

    def drop_all(self) -> list[Slot]:
        """Take every slot out, for the caller to fail each."""
        slots = list(self._slots.values())
        self._slots.clear()
        return slots
