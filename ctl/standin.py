"""The manager that a command line starts: where it listens, and one of it for the time of a command
when none serves, which a shutdown needs to stop containers in time although the service is down.
"""

import os
import shlex
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

from lighter.ctl.cli import DEFAULT_ADDRESS, OtherVersion, Session
from lighter.ctl.kept import HANDED_OVER
from lighter.proto.errors import Unavailable
from lighter.proto.paths import State

START_S = 20.0
STOP_S = 10.0
ASKED_S = 20.0


def find(session: Session, command: str) -> None:
    """Point the session to where `command`'s configuration has its socket; "" asks nobody.

    Not when an address was given, or when that socket is missing and the usual one is there: a
    changed configuration is in force with the next start.
    """
    if not command or session.address != DEFAULT_ADDRESS:
        return
    socket = _configured(command)
    if socket and (os.path.exists(socket) or not os.path.exists(DEFAULT_ADDRESS)):
        session.address = socket
        os.environ["LIGHTER_ADDRESS"] = socket  # of the ctl that this one may hand over to


def _configured(command: str) -> str:
    """The socket that a manager of this command would make; "" when it does not say."""
    try:
        argv = [*shlex.split(command), "config", "dump"]
        done = subprocess.run(
            argv, capture_output=True, timeout=ASKED_S, stdin=subprocess.DEVNULL, check=True
        )
        return State(str(tomllib.loads(done.stdout.decode())["state"])).client_socket
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return ""


@contextmanager
def stand_in(session: Session, command: str) -> Iterator[None]:
    """Inside, a manager serves: the one that does already, or else `command` is run for it.

    Raises Unavailable when none answers and `command` is "", or does not come up; OtherVersion,
    with nothing left running, when it is of a version that this ctl does not speak with.
    """
    try:
        session.manager.connect()
        argv = []
    except OtherVersion:
        raise
    except Unavailable as err:
        if not command:
            raise
        argv = shlex.split(command)
        session.complain(f"{err.message}; running {command} for this command")
    if not argv:
        yield
        return
    own = ("NOTIFY_SOCKET", HANDED_OVER)
    environ = {name: value for name, value in os.environ.items() if name not in own}
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environ)
    except OSError as err:
        raise Unavailable(f"run {argv[0]}: {err.strerror}") from err
    try:
        _await_answer(session, process, command)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(session: Session, process: "subprocess.Popen[bytes]", command: str) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            session.manager.connect()
            return
        except OtherVersion:
            raise
        except Unavailable:
            if process.poll() is not None:
                raise Unavailable(f"run {command}: it ended with {process.returncode}") from None
            if time.monotonic() > until:
                raise
