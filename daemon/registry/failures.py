"""From answers and broken connections to the errors that callers decide by."""

import json
import os
import re
import ssl
from typing import Any

from lighter.daemon.registry.redact import Redactor
from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

MAX_ERROR_BYTES = 64 << 10

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

_MAX_RETRY_AFTER_DIGITS = 9


class Broken(Unavailable):
    """The connection broke or stalled: the same again may well work."""


class Closed(Broken):
    """The other side closed the connection before it had answered."""


class Refused(Unavailable):
    """Nobody listens there. A registry that is restarted is back in a moment."""


class Answered(Unavailable):
    """An answer that says "not now". `retry_after_s` is what it asks for, 0 for nothing."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooMany(ResourceExhausted):
    """429; as Answered."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WrongBytes(DataLoss):
    """What came is not the content that was asked for, whichever host it came from."""


def may_retry(error: LighterError) -> bool:
    """Whether trying the same again makes sense."""
    return isinstance(error, Broken | Refused | Answered | TooMany)


_CLASSES: dict[int, type[LighterError]] = {
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    413: ResourceExhausted,
    451: PermissionDenied,
}

_WORDS = {
    401: "it wants other credentials",
    403: "access is denied",
    404: "it is not there",
    413: "it is too large for the registry",
    429: "too many requests",
    503: "the registry is not available",
}


def from_answer(
    what: str, status: int, body: bytes, retry_after: str, redactor: Redactor
) -> LighterError:
    """The error that an answer means; its status is among its details. `what`: "verb object"."""
    said = registry_message(body)
    words = redactor.clean(said) if said else _WORDS.get(status, "")
    message = f"{what}: the registry answers {status}" + (f": {words}" if words else "")
    error: LighterError
    if status == 429:
        pause_s = retry_after_s(retry_after)
        if pause_s:
            message += f"; it may be asked again in {_span(pause_s)}"
        error = TooMany(message, pause_s)
    elif status in RETRIED:
        error = Answered(message, retry_after_s(retry_after))
    elif status >= 500:
        error = Unavailable(message)
    else:
        error = _CLASSES.get(status, InvalidArgument)(message)
    error.details["status"] = status
    return error


def registry_message(body: bytes) -> str:
    """What the body of an error says (distribution-spec, "Error Codes"); "" if it is none."""
    try:
        document: Any = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    listed = document.get("errors")
    entries = listed if isinstance(listed, list) else [document]
    for entry in entries[:4]:
        if not isinstance(entry, dict):
            continue
        parts = [entry.get(key) for key in ("code", "message", "error", "error_description")]
        parts.append(entry.get("details"))
        texts = [part for part in parts if isinstance(part, str) and part]
        if texts:
            return ": ".join(dict.fromkeys(texts))
    return ""


def retry_after_s(value: str) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3): a number or a date; 0 else."""
    value = value.strip()
    if re.fullmatch(rf"[0-9]{{1,{_MAX_RETRY_AFTER_DIGITS}}}", value, re.ASCII):
        return float(value)
    if value.isascii() and value.isdigit():
        return float(10**_MAX_RETRY_AFTER_DIGITS)
    from email.utils import parsedate_to_datetime
    from time import time

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError, TypeError):
        return 0.0


def _span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 7 * 86400 else "more than a week"


def reason(err: BaseException) -> str:
    """What the system or a library says, without numbers."""
    if isinstance(err, OSError) and err.strerror and not isinstance(err, ssl.SSLError):
        # asyncio says instead of the cause that there is one.
        return err.strerror.replace("Connect call failed", os.strerror(err.errno or 0), 1)
    return str(err) or type(err).__name__
