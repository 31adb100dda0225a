"""The OCI runtime as a program: argument lists as pure functions, and one way to run them.

runc(8), crun(1). Every call has a deadline; a call that overruns it is ended with its whole
process group. What went wrong is taken from the runtime's own log, because its standard error
is the container's.
"""

import json
import os
import signal
from collections.abc import Iterable

from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    LighterError,
    NotFound,
    Unavailable,
)
from lighter.proto.paths import RUNTIME_PATH
from lighter.shim.files import read_text
from lighter.shim.loop import Future, Loop
from lighter.shim.reaper import Reaper
from lighter.shim.spawn import spawn

MAX_LOG_TAIL = 64 * 1024
MAX_QUOTE = 4096
# A container must not inherit the manager's environment (NOTIFY_SOCKET would make `runc start`
# wait for a READY that never comes).
ENVIRONMENT = {"PATH": RUNTIME_PATH}

# What CRIU takes along besides, when it is told: runc-checkpoint(8).
CHECKPOINT_FLAGS = ("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks")

_OOM_SCORE = "/proc/self/oom_score_adj"  # proc_pid_oom_score_adj(5)

# What fails in these by the container's own program, in runc's words and crun's; a mount whose
# source is missing has "no such file or directory" too.
_STARTING = ("create", "start", "exec")
_OF_PROGRAM = ("exec: ", "exec /", "executable", "chdir")

KILLED_S = 5.0  # how long a runtime that was killed may take to die


def create_argv(
    bundle: str, pid_file: str, console_socket: str, container_id: str, flags: Iterable[str] = ()
) -> list[str]:
    argv = ["create", "--bundle", bundle, "--pid-file", pid_file, *flags]
    if console_socket:
        argv += ["--console-socket", console_socket]
    return [*argv, container_id]


def exec_argv(process: str, pid_file: str, console_socket: str, container_id: str) -> list[str]:
    argv = ["exec", "--detach", "--process", process, "--pid-file", pid_file]
    if console_socket:
        argv += ["--console-socket", console_socket]
    return [*argv, container_id]


def update_argv(container_id: str, resources: str) -> list[str]:
    return ["update", "--resources", resources, container_id]


def checkpoint_argv(container_id: str, image: str, work: str, flags: Iterable[str]) -> list[str]:
    return ["checkpoint", "--image-path", image, "--work-path", work, *flags, container_id]


def restore_argv(
    bundle: str, pid_file: str, console_socket: str, container_id: str, image: str, work: str
) -> list[str]:
    argv = ["restore", "--detach", "--bundle", bundle, "--pid-file", pid_file]
    argv += ["--image-path", image, "--work-path", work]
    if console_socket:
        argv += ["--console-socket", console_socket]
    return [*argv, container_id]


def delete_argv(container_id: str, force: bool = False) -> list[str]:
    return ["delete", "--force", container_id] if force else ["delete", container_id]


class Runc:
    """One runtime binary with one --root, run for one container. `log` is a path prefix, `flags`
    stand before every verb.
    """

    __slots__ = ("_binary", "_calls", "_flags", "_log", "_loop", "_reaper", "_root")

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        binary: str,
        root: str,
        log: str,
        flags: "list[str] | None" = None,
    ) -> None:
        self._flags = flags or []
        self._loop = loop
        self._reaper = reaper
        self._binary = binary
        self._root = root
        self._log = log
        self._calls = 0

    async def run(
        self, argv: list[str], timeout_s: float, stdio: tuple[int, int, int] | None = None
    ) -> None:
        """Run to the end; the child gets `stdio`, or /dev/null (the shim's own 0, 1, 2).

        Raises FailedPrecondition with the runtime's last log line (details: `runtime`, the verb;
        `said`, that line; exit_code 126 or 127 when the container's program could not be executed
        or found), DeadlineExceeded with it, NotFound or Unavailable when the runtime itself cannot
        be started.
        """
        verb = argv[0]
        self._calls += 1
        log = f"{self._log}.{self._calls}"  # its own: execs run side by side
        try:
            status = await self._run(verb, [*self._prefix(log), *argv], timeout_s, stdio)
            if status:
                raise _failure(argv, status, last_error(log))
        except DeadlineExceeded as err:
            message = last_error(log)
            if not message:
                raise
            raise DeadlineExceeded(f"{err.message}; its last words: {message}") from err
        finally:
            _unlink(log)

    async def _run(
        self, verb: str, argv: list[str], timeout_s: float, stdio: tuple[int, int, int] | None
    ) -> int:
        what = f"run {self._binary} {verb}"
        ended = Future()
        pid = self._spawn(what, argv, stdio)
        self._reaper.expect(pid, lambda status, _at: ended.set(status))
        try:
            return int(await self._loop.within(ended, timeout_s, what))
        except DeadlineExceeded:
            os.killpg(pid, signal.SIGKILL)  # not reaped yet, so the group is still this one
            try:
                await self._loop.within(ended, KILLED_S, f"end {self._binary} {verb}")
            except DeadlineExceeded as stuck:
                # Uninterruptible sleep. It is reaped whenever it ends; nobody waits for that.
                raise DeadlineExceeded(
                    f"{what}: no answer within {timeout_s:g} s, and SIGKILL does not end it"
                ) from stuck
            raise

    def _prefix(self, log: str) -> list[str]:
        head = [self._binary, "--root", self._root, "--log", log, "--log-format", "json"]
        return [*head, *self._flags]

    def _spawn(self, what: str, argv: list[str], stdio: tuple[int, int, int] | None) -> int:
        try:
            return _spawn_unprotected(argv, stdio or ())
        except FileNotFoundError as err:
            raise NotFound(f"{what}: no such file") from err
        except OSError as err:
            raise Unavailable(f"{what}: {err.strerror}") from err


def _spawn_unprotected(argv: list[str], stdio: tuple[int, ...]) -> int:
    """Spawn with the oom score that a process has by itself. The shim's, which is the manager's,
    would be that of each container whose spec has none. Raises OSError.
    """
    own = read_text(_OOM_SCORE).strip()
    if own in ("", "0"):
        return spawn(argv, ENVIRONMENT, stdio)
    _set_oom_score("0")
    try:
        return spawn(argv, ENVIRONMENT, stdio)
    finally:
        _set_oom_score(own)


def _set_oom_score(score: str) -> None:
    """Raise it, or lower it as far as it was before, or further with CAP_SYS_RESOURCE."""
    try:
        fd = os.open(_OOM_SCORE, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, score.encode())
    except OSError:
        pass  # EACCES: one that was started with a higher score keeps that
    finally:
        os.close(fd)


def last_error(path: str) -> str:
    """The message of the last error line in a runtime's JSON log; "" if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, MAX_LOG_TAIL, max(0, size - MAX_LOG_TAIL))
    finally:
        os.close(fd)
    last = ""
    # Decoded here: given bytes, json guesses among encodings whose codecs are not loaded.
    for line in tail.decode(errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            last = str(entry.get("msg", ""))
    return last.strip()[:MAX_QUOTE]


def attempt(argv: list[str]) -> str:
    """What a call of the runtime is about: each has the container's id last."""
    verb, container_id = argv[0], argv[-1]
    return f"exec in task {container_id}" if verb == "exec" else f"{verb} task {container_id}"


def _failure(argv: list[str], status: int, message: str) -> LighterError:
    if not message:
        how = f"signal {status - 128}" if status > 128 else f"exit status {status}"
        message = f"it ended with {how} and logged no error"
    error = FailedPrecondition(f"{attempt(argv)}: {message}", runtime=argv[0], said=message)
    lower = message.lower().replace("fork/exec", "")  # that is a hook's
    if argv[0] not in _STARTING or not any(word in lower for word in _OF_PROGRAM):
        return error
    if "executable file not found" in lower or "no such file or directory" in lower:
        error.details["exit_code"] = 127
    elif "permission denied" in lower or "exec format error" in lower or "is a directory" in lower:
        error.details["exit_code"] = 126
    return error


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
