"""Job `process`: a program of the administrator's between two descriptors, and all that it starts.

    {job: "process", argv: [absolute path, …], env: {name: value}}
    + [its input, its output, what it reads as descriptor 3 (or none)]
    → {code: as a shell says it, words: the end of what it wrote to stderr}

One progress report says that the descriptors are here: who sent them may close its own. The
program is trusted as a runtime is, so it is not locked in. It runs in a pid namespace, below a
first process that dies with this one: nothing that it starts outlives the job, however that ends.
"""

import fcntl
import os
import select
import signal
from typing import Any, NoReturn

from lighter.proto.errors import InvalidArgument
from lighter.shim import linux
from lighter.shim.worker import lockin
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import typed

MAX_WORDS = 2000
_ABOVE = 10  # the descriptors that the program gets are below: none may be overwritten by another
_READ = 4096
_NOT_STARTED = 127


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    argv, environ = job.get("argv"), job.get("env")
    if not isinstance(argv, list) or not argv or not isinstance(environ, dict):
        raise InvalidArgument("run program: the job names none")
    if len(fds) not in (2, 3):
        raise InvalidArgument(f"run program: expected two or three descriptors, got {len(fds)}")
    lockin.close_all_but([channel.fileno(), *fds])
    channel.tick(started=1)
    try:
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        life_read, life_write = os.pipe2(os.O_CLOEXEC)
        linux.unshare(linux.CLONE_NEWPID)
        pid = os.fork()
    except OSError as err:
        raise typed(err, "run program: make its namespace") from err
    if pid == 0:
        os.close(life_write)
        _be_first(argv, environ, [*fds[:2], err_write, *fds[2:]], life_read)
    for fd in (*fds, err_write, life_read):
        os.close(fd)
    words = b""
    while True:
        channel.wait_readable(err_read)
        chunk = os.read(err_read, _READ)
        if not chunk:
            break  # the last that had it has ended: the first process ends them all
        words = (words + chunk)[-MAX_WORDS:]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": _as_shells_say(code), "words": words.decode("utf-8", "replace")}


def _as_shells_say(code: int) -> int:
    return code if code >= 0 else 128 - code


def _be_first(
    argv: list[str], environ: dict[str, str], stdio: list[int], life_read: int
) -> NoReturn:
    """Process 1 of the namespace: it starts the program, and ends with it or with its parent."""
    code = _NOT_STARTED
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if not select.select([life_read], [], [], 0)[0]:  # else the parent ended before the call
            lockin.close_all_but([life_read, *stdio])
            program = os.fork()
            if program == 0:
                _become(argv, environ, stdio)
            lockin.close_all_but([life_read])
            pid = 0
            while pid != program:
                pid, status = os.wait()
            code = _as_shells_say(os.waitstatus_to_exitcode(status))
    finally:
        os._exit(code)


def _become(argv: list[str], environ: dict[str, str], stdio: list[int]) -> NoReturn:
    try:
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in stdio]
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        lockin.close_all_but(list(range(3, len(moved))))
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.setsid()
        os.execve(argv[0], argv, environ)  # noqa: S606 (there is no shell to be wanted)
    except OSError as err:
        os.write(2, f"start {argv[0]}: {err.strerror}".encode(errors="replace"))
    finally:
        os._exit(_NOT_STARTED)
