"""Our errors as gRPC's, whose codes they share (https://grpc.io/docs/guides/status-codes/)."""

import grpc

from lighter.proto.errors import BY_CODE, LighterError, Unknown

_SPELLED = {"canceled": "CANCELLED"}
_STATUS = {
    code: grpc.StatusCode[_SPELLED.get(code, code.upper().replace("-", "_"))] for code in BY_CODE
}

_CLASS = {status: BY_CODE[code] for code, status in _STATUS.items()}

# A status travels in a header, and clients take some KiB of headers at most.
MAX_MESSAGE = 4096


def status_of(error: LighterError) -> tuple[grpc.StatusCode, str]:
    """(code, message) of the status that a call ends with."""
    return _STATUS.get(error.code, grpc.StatusCode.UNKNOWN), error.message[:MAX_MESSAGE]


def error_of(status: grpc.StatusCode, message: str) -> LighterError:
    """The error that another server's status says."""
    return _CLASS.get(status, Unknown)(message[:MAX_MESSAGE])
