"""The `ctl` command: errors become one line and an exit code, and nothing else is done here.

0    done                          124  --timeout was over
1    failure                       125  the manager refused to run or exec
2    wrong usage                   126, 127  the program cannot be run, is not there
n    the process's own code, of an attached run, exec, attach or start
128+n  ended by signal n: 130 for Ctrl-C, 141 when nobody reads standard output any more
"""

import gc
import os
import signal
import sys
from typing import NoReturn

import click

from lighter.ctl.cli import Interrupted, Session, ctl
from lighter.proto.errors import DeadlineExceeded, LighterError

COMPLETE = "_CTL_COMPLETE"  # what the installed completion scripts set

FAILURE = 1
USAGE = 2
TIMEOUT = 124


def main() -> NoReturn:
    """Run the command line of this process, and end with its exit code.

    Everything is closed and flushed by then, so the interpreter is not taken apart, which would
    take 9 ms of the 65 that a short command has.
    """
    gc.disable()  # nothing here lives long enough to be worth a search
    _open_standard_descriptors()
    try:
        instruction = os.environ.get(COMPLETE)
        code = _complete(instruction) if instruction else _run(sys.argv[1:])
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    os._exit(code)


def _complete(instruction: str) -> int:
    """Print what the shell asks for: words that fit, or its completion script."""
    from click.shell_completion import shell_complete

    return shell_complete(ctl, {"obj": Session()}, "ctl", COMPLETE, instruction)


def _run(args: list[str]) -> int:
    session = Session()
    try:
        with session, ctl.make_context("ctl", args, obj=session) as context:
            result = ctl.invoke(context)
            return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except LighterError as error:
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


def _exit_code(error: LighterError) -> int:
    code = error.details.get("exit_code")
    if isinstance(error, DeadlineExceeded):
        return TIMEOUT
    return code if isinstance(code, int) else FAILURE


def _open_standard_descriptors() -> None:
    """Keep 0, 1 and 2 from becoming a pipe or socket of ours when the caller has closed one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: fd itself


if __name__ == "__main__":
    main()
