"""What an errno of the file system means to a caller, in one place."""

import errno
import os

from lighter.daemon.files import read_only_mount
from lighter.proto.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    LighterError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    words_of,
)

_MEANING: dict[int, type[LighterError]] = {
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EROFS: FailedPrecondition,
    errno.EBUSY: FailedPrecondition,
    errno.ENOENT: NotFound,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EIO: DataLoss,
}


def from_os(attempt: str, error: OSError) -> LighterError:
    """The typed error for `attempt` ("verb object"), naming the path where there is one."""
    text = words_of(error, attempt)
    if error.errno == errno.EROFS and isinstance(error.filename, str | bytes):
        text += f", on {read_only_mount(os.path.dirname(os.fsdecode(error.filename)))}"
    return _MEANING.get(error.errno or 0, Internal)(f"{attempt}: {text}")
