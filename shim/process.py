"""One process that this shim looks after: the container's init or an exec.

It knows its streams and its end. What it means that it ended is the task's business.
"""

import os

from lighter.proto import states
from lighter.proto.errors import NotFound
from lighter.shim.files import read_text
from lighter.shim.loop import Future
from lighter.shim.stdio import Stdio


class Process:
    """`exec_id` is "" for init. Three things happen to it in this order:

    `ended`  it is reaped; the value is (exit status, time in ns since the epoch)
    `told`   its exit has been published (or it never came to be)
    `gone`   its output is passed on as well, nothing of it is left
    """

    __slots__ = ("ended", "exec_id", "gone", "pid", "state", "stdio", "table", "told")

    def __init__(self, exec_id: str, stdio: Stdio) -> None:
        self.exec_id = exec_id
        self.stdio = stdio
        self.pid = 0
        self.state = states.CREATING
        self.table = states.EXEC if exec_id else states.TASK
        self.ended = Future()
        self.told = Future()
        self.gone = Future()

    def check(self, step: str, container_id: str) -> str:
        """The state that `step` leads to; raises FailedPrecondition and changes nothing."""
        what = f"exec {self.exec_id} of {container_id}" if self.exec_id else f"task {container_id}"
        return states.advance(self.table, self.state, step, what)

    def step(self, step: str, container_id: str) -> None:
        self.state = self.check(step, container_id)

    def kill(self, signum: int) -> None:
        """Signal it. Its pid cannot have come round: it is our child, and not reaped yet."""
        if self.ended.done or not self.pid:
            raise NotFound(f"kill process {self.exec_id or 'init'}: it has ended already")
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError as err:
            raise NotFound(f"kill process {self.pid}: it has ended already") from err

    def on_exit(self, exit_status: int, exited_at: int) -> None:
        self.ended.set((exit_status, exited_at))


def read_pid(path: str) -> int:
    """The pid in a runtime's pid file; 0 when the runtime did not write one."""
    text = read_text(path)
    return int(text) if text.isdigit() else 0
