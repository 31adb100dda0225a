"""What a Unix socket's path may be (unix(7)), said before libzmq does it less clearly."""

from __future__ import annotations

import sys

from lighter.proto.errors import InvalidArgument

MAX_SOCKET_PATH = 107


def check_socket_path(path: str) -> str:
    """Return `path` if a Unix socket can have it. Raises InvalidArgument.

    A path that starts with '@' or NUL would be an abstract socket, reachable from every container
    that shares the host's network namespace (CVE-2020-15257).
    """
    if not path.startswith("/"):
        raise InvalidArgument(f"check socket path {path!r}: it is not absolute")
    # As os.fsencode, which ctl does not load.
    size = len(path.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()))
    if size > MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"check socket path {path!r}: {size} bytes, a Unix socket has at most {MAX_SOCKET_PATH}"
        )
    return path
