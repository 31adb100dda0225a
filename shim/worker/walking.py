"""What walks down a tree that somebody else may change meanwhile have in common."""

import errno
import resource
import sys

MAX_DEPTH = 900  # of directories in each other, each with its descriptors open
# What becomes of a name that is removed or swapped meanwhile; ELOOP by O_NOFOLLOW.
VANISHED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_FRAMES = 2  # of Python for each level
_DESCRIPTORS = 2
_OTHERS = 500


def allow_depth() -> None:
    """Let this process go down MAX_DEPTH levels. Raises OSError."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _FRAMES * MAX_DEPTH + _OTHERS))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS * MAX_DEPTH + _OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
