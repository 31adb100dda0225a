"""The `ctl` command: errors become one line and an exit code, and nothing else is done here.

0    done                          124  --timeout was over
1    failure                       125  create, run or exec was refused, or no manager is there
2    wrong usage                   126, 127  the program cannot be run, is not there
n    the process's own code, of an attached run, exec, attach or start
128+n  ended by signal n: 130 for Ctrl-C, 141 when nobody reads standard output any more
"""

from __future__ import annotations

import gc
import sys

from lighter.ctl.cli import Interrupted, OtherVersion, Session, ctl
from lighter.ctl.grammar import Done, UsageError
from lighter.ctl.reading import read, variable
from lighter.proto.errors import DeadlineExceeded, LighterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any, NoReturn
else:
    import posix as os  # system calls alone; what `os` brings besides takes a millisecond

COMPLETE = "_CTL_COMPLETE"  # what the installed completion scripts set

NAME = "ctl"
FAILURE = 1
TIMEOUT = 124
# signal(7); the enums of `signal` would take as long to load as all of ctl.
SIGINT = 2
SIGPIPE = 13


def main() -> NoReturn:
    """Run the command line of this process, and end with its exit code.

    Everything is closed and flushed by then, so the interpreter is not taken apart, which would
    take longer than most commands do.
    """
    gc.disable()  # nothing here lives long enough to be worth a search
    _open_standard_descriptors()
    try:
        instruction = variable(COMPLETE)
        code = _complete(instruction) if instruction else _run(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 128 + SIGPIPE
    os._exit(code)


def _complete(instruction: str) -> int:
    """Print what the shell asks for: words that fit, or its completion script."""
    from lighter.ctl import clicked

    return clicked.complete(ctl, NAME, COMPLETE, instruction)


def _run(args: list[str]) -> int:
    session = Session()
    try:
        with session:
            result = _result(args, session)
            return result if isinstance(result, int) else 0
    except Done:
        return 0
    except KeyboardInterrupt:
        return 128 + SIGINT
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except LighterError as error:
        if isinstance(error, OtherVersion):
            from lighter.ctl.kept import become

            become(session.manager.path, sys.argv[1:])
        if session.debug:
            sys.excepthook(*sys.exc_info())
        session.complain(error.message)
        return _exit_code(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        if session.debug:
            sys.excepthook(*sys.exc_info())
        place = error.filename or "standard input or output"
        session.complain(f"use {place}: {error.strerror}")
        return FAILURE


def _result(args: list[str], session: Session) -> Any:
    """What the command's function returns, or the exit code of wrong usage."""
    steps = read(ctl, args)
    if steps is None:
        from lighter.ctl import clicked

        return clicked.run(ctl, NAME, args, session)
    try:
        result = None
        for step in steps:
            result = step.take(session)
        return result
    except UsageError as error:
        from lighter.ctl import clicked

        return clicked.explain([step.command for step in steps], NAME, error)


def _exit_code(error: LighterError) -> int:
    # Others have deadlines too: a runtime, a plugin. Theirs is a failure like any other.
    if isinstance(error, DeadlineExceeded) and not error.answered:
        return TIMEOUT
    code = error.details.get("exit_code")
    return code if isinstance(code, int) else FAILURE


def _open_standard_descriptors() -> None:
    """Keep 0, 1 and 2 from becoming a pipe or socket of ours when the caller has closed one."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)  # the lowest free descriptor: fd itself
            mode = "w" if fd else "r"
            # Python has None in its place.
            setattr(sys, name, open(fd, mode, errors="replace", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
