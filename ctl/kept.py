"""The ctl of the version that serves, when this one does not speak the manager's protocol.

A kept version may stand in for the installed one (docs/upgrade.md): then /usr/bin/ctl and the
manager are of different versions, and may share no protocol. A manager writes the path of its own
ctl to `<state>/ctl`; what is run by it must be root's alone, and so must the way to it.
"""

from __future__ import annotations

import os
import stat

from lighter.proto.paths import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# One ctl hands over to another once.
HANDED_OVER = "LIGHTER_CTL_HANDED_OVER"
MAX_PATH = 4096


def become(socket: str, arguments: Sequence[str]) -> None:
    """Become the ctl of the manager behind `socket`; return when there is none that may be run."""
    if HANDED_OVER in os.environ:
        return
    program = program_of(os.path.dirname(os.path.abspath(socket)))
    if program:
        try:
            environ = {**os.environ, HANDED_OVER: "1"}
            os.execve(program, [program, *arguments], environ)  # noqa: S606
        except OSError:
            pass  # what this ctl has to say is said then


def program_of(state_dir: str) -> str:
    """What the manager wrote; "" when nothing, or when others than root could have."""
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        name = os.path.basename(State(state_dir).ctl)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=directory)
        try:
            if not (_is_roots_alone(os.fstat(directory)) and _is_roots_file(os.fstat(fd))):
                return ""
            program = os.fsdecode(os.read(fd, MAX_PATH)).strip()
        finally:
            os.close(fd)
        return program if program.startswith("/") and _is_roots_file(os.stat(program)) else ""
    except (OSError, ValueError):
        return ""
    finally:
        os.close(directory)


def _is_roots_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and _is_roots_alone(found)


def _is_roots_alone(found: os.stat_result) -> bool:
    return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
