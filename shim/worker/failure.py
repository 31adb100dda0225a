"""From errno to the closed set of errors: what a failed system call means to the caller."""

import errno
import os

from lighter.proto.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    LighterError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

_MEANING: dict[int, type[LighterError]] = {
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EFBIG: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EMLINK: ResourceExhausted,
    errno.EPERM: PermissionDenied,
    errno.EACCES: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOENT: NotFound,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ENOTDIR: InvalidArgument,
    errno.ELOOP: InvalidArgument,
    errno.EINVAL: InvalidArgument,
    errno.ERANGE: InvalidArgument,
    errno.E2BIG: InvalidArgument,
    errno.ENOTEMPTY: FailedPrecondition,
    errno.EBUSY: FailedPrecondition,
    errno.EOVERFLOW: InvalidArgument,
    errno.EIO: DataLoss,
    errno.EWOULDBLOCK: Unavailable,  # a lease (F_SETLEASE) of another process
}


def typed(error: OSError, doing: str) -> LighterError:
    """The error that travels for `error`, as "doing: cause"."""
    number = error.errno or 0
    return _MEANING.get(number, Internal)(f"{doing}: {error.strerror or os.strerror(number)}")


def show(name: bytes) -> str:
    """A name out of an archive as it may stand in a message: quoted, printable, bounded."""
    text = os.fsdecode(name[:256])
    return ascii(text) + ("…" if len(name) > 256 else "")
