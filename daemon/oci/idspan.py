"""Ids of the host that are set aside for containers, as files and settings write them."""

import re

from lighter.daemon.values import frozen
from lighter.proto.errors import InvalidArgument

_MAX_ID = (1 << 32) - 2  # 4294967295 is "no id"


@frozen
class Span:
    """`size` ids of the host from `first` on."""

    first: int
    size: int

    @property
    def end(self) -> int:
        return self.first + self.size


def parse_span(text: str) -> Span:
    """`FIRST:SIZE`. Raises InvalidArgument."""
    if not re.fullmatch("[0-9]{1,10}:[0-9]{1,10}", text):
        raise InvalidArgument(f"read id range {text!r}: expected FIRST:SIZE")
    first, size = map(int, text.split(":"))
    span = Span(first, size)
    if not span.first or not span.size or span.end - 1 > _MAX_ID:
        raise InvalidArgument(f"read id range {text!r}: expected ids from 1 to {_MAX_ID}")
    return span
