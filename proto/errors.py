"""The closed set of errors, the same words on the wire, in the log and on the command line.

The codes are gRPC's canonical ones (https://grpc.io/docs/guides/status-codes/), spelled in kebab
case. A class per code, because a caller decides by class; a message reads "verb object: cause".
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LighterError(Exception):
    """Base of every error that may travel: `code` names it, `details` is plain msgpack data."""

    code = "unknown"
    answered = False  # whether a peer sent it, who is there then

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details


def unforeseen(error: Exception) -> Exception | None:
    """The error itself if it is a bug (log its traceback), None for an expected kind."""
    return None if isinstance(error, (LighterError, OSError)) else error


def words_of(error: Exception, attempt: str = "") -> str:
    """The cause, to be put behind "attempt: ". Of an OSError: the kernel's words, and those paths
    that `attempt` does not name already.
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    paths = [_text(name) for name in (error.filename, error.filename2)]
    told = " -> ".join(path for path in paths if path and f" {path} " not in f"{attempt} ")
    return f"{error.strerror}: {told}" if told else error.strerror


def _text(name: object) -> str:
    """A path as text; "" for anything else (None, a descriptor)."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "surrogateescape")
    return name if isinstance(name, str) else ""


class Unknown(LighterError):
    code = "unknown"


class Canceled(LighterError):
    code = "canceled"


class InvalidArgument(LighterError):
    code = "invalid-argument"


class DeadlineExceeded(LighterError):
    code = "deadline-exceeded"


class NotFound(LighterError):
    code = "not-found"


class AlreadyExists(LighterError):
    code = "already-exists"


class PermissionDenied(LighterError):
    code = "permission-denied"


class ResourceExhausted(LighterError):
    code = "resource-exhausted"


class FailedPrecondition(LighterError):
    code = "failed-precondition"


class Aborted(LighterError):
    code = "aborted"


class OutOfRange(LighterError):
    code = "out-of-range"


class Unimplemented(LighterError):
    code = "unimplemented"


class Internal(LighterError):
    code = "internal"


class Unavailable(LighterError):
    code = "unavailable"


class DataLoss(LighterError):
    code = "data-loss"


BY_CODE: dict[str, type[LighterError]] = {
    cls.code: cls
    for cls in (
        Unknown,
        Canceled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
    )
}


def from_wire(code: str, message: str, details: dict[str, Any] | None = None) -> LighterError:
    """Rebuild the error a peer sent. A code this version does not know becomes Unknown."""
    error = BY_CODE.get(code, Unknown)(message)
    error.details = dict(details or {})
    error.answered = True
    return error
