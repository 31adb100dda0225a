"""containerd's words for common refusals: ctr and others print them as they come."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lighter.proto.errors import InvalidArgument, LighterError
from lighter.proto.names import MAX_NAME, check_name

_PATTERN = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
# The same; ours are looser by what may stand between and at the end.
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)


def quoted(text: str) -> str:
    """As Go's %q writes it."""
    return json.dumps(text, ensure_ascii=False)


def identifier(text: str) -> str:
    """Return what names an object of ours, by containerd's rule. Raises InvalidArgument."""
    try:
        if check_name(text, "identifier") and not _NAME.fullmatch(text):
            raise InvalidArgument(f"check identifier {text}: it is none of containerd's")
        return text
    except InvalidArgument as err:
        if not text:
            cause = "identifier must not be empty"
        elif len(text) > MAX_NAME:
            cause = f"identifier {quoted(text)} greater than maximum length ({MAX_NAME} characters)"
        else:
            cause = f"identifier {quoted(text)} must match {_PATTERN}"
        raise InvalidArgument(f"{cause}: invalid argument") from err


@contextmanager
def saying(words: Mapping[type[LighterError], str]) -> Iterator[None]:
    """Within the block an error of one of these classes reads as is said here; its code stays."""
    try:
        yield
    except LighterError as err:
        for kind, text in words.items():
            if isinstance(err, kind):
                raise kind(text) from err
        raise
