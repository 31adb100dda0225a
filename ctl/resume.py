"""How a call goes on after the manager was restarted: what to ask the next one.

A call without a resumption fails then, because nobody knows how far it came. One with a resumption
sees each item as it arrives, and names the body of the request that brings the rest.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol
else:
    from lighter.proto.light import Protocol


class Resumption(Protocol):
    def take(self, item: Any) -> Any:
        """The part of `item` that is new; None when all of it was seen before."""

    def body(self) -> dict[str, Any]:
        """The request for what is missing. Items after this belong to its answer."""


class Same:
    """A call that may be asked again as it was, marked as such. Items are only what is new."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = dict(body)

    def take(self, item: Any) -> Any:
        return item

    def body(self) -> dict[str, Any]:
        return {**self._body, "reissued": True}


class AfterSequence:
    """Events: all after the last number that was seen."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = dict(body)
        self._last = -1

    def take(self, item: Any) -> Any:
        if item["sequence"] <= self._last:
            return None
        self._last = item["sequence"]
        return item

    def body(self) -> dict[str, Any]:
        return self._body if self._last < 0 else {**self._body, "since": self._last}


class AfterBytes:
    """Logs: what follows the bytes of the last instant that were seen.

    `since` is exclusive, and several items may carry one time, so all of that time is asked for
    again; the bytes that came with it are counted per stream, and skipped.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = dict(body)
        self._began = time.time_ns()
        self._time = -1
        self._seen: dict[int, int] = {}
        self._skip: dict[int, int] = {}

    def take(self, item: Any) -> Any:
        time_ns, stream, data = item["timestamp"], item["stream"], item["data"]
        if time_ns == self._time and self._skip.get(stream):
            skipped = min(self._skip[stream], len(data))
            self._skip[stream] -= skipped
            if skipped == len(data):
                return None
            data = data[skipped:]
        if time_ns != self._time:
            self._time = time_ns
            self._seen.clear()
            self._skip.clear()
        self._seen[stream] = self._seen.get(stream, 0) + len(data)
        return {**item, "data": data}

    def body(self) -> dict[str, Any]:
        if self._time < 0:
            if self._body.get("tail") != 0:
                return self._body
            # What came when no manager was there is new too, and the end of the log no longer ours.
            since = max(self._began, self._body.get("since") or 0)
            return {**self._body, "tail": None, "since": since}
        self._skip = dict(self._seen)
        return {**self._body, "tail": None, "since": self._time - 1}


def resumption(method: str, body: Mapping[str, Any]) -> Resumption | None:
    """How a call of `method` ("service.method") goes on, None for one that cannot."""
    match method:
        case "tasks.wait" | "system.stop_containers":
            return Same(body)
        case "events.subscribe":
            return AfterSequence(body)
        case "logs.read":
            return AfterBytes(body)
    return None
