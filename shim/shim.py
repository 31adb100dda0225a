"""A shim's process, from its fork to its end.

Its first act is to rename the claim file: a manager that recovers unlinks the claim before it
judges the row, so either this shim exists and is recorded, or it ends here and never was.
"""

import errno
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import setproctitle

from lighter.proto import codec, events, shim_api
from lighter.proto.calls import MAX_OUTSTANDING
from lighter.proto.errors import (
    Internal,
    InvalidArgument,
    LighterError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from lighter.proto.faults import hit
from lighter.proto.version import VERSION
from lighter.shim import cgroup, exitrecord, files, guard, linux
from lighter.shim.cgroup import Cgroup
from lighter.shim.link import Link
from lighter.shim.loop import Loop
from lighter.shim.reaper import Reaper
from lighter.shim.task import Task

MAX_REPORT = 64 * 1024
WELCOME_S = 30.0  # for a manager to hear why a create failed that could not be undone
_ENDING = ("kill", "end")
_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


class Shim:
    """Wires one task to the wire: requests in, answers and events out."""

    def __init__(
        self,
        order: dict[str, Any],
        start_time: int,
        boot_id: str,
        find_cgroup: Callable[[int, str], Cgroup] = cgroup.of_process,
    ) -> None:
        self._order = order
        self._start_time = start_time
        self._boot_id = boot_id
        self._report_path = order["bundle"] + "/shim.log"
        self._open: set[tuple[int, int]] = set()  # requests under way: generation, ident
        self.loop = Loop(self.report)
        self.reaper = Reaper(self.loop)
        self.task = Task(self.loop, self.reaper, order, find_cgroup)
        # First in the loop, so that the runtime is at work while the link is made.
        self.loop.spawn(self._live())
        self.link = Link(
            self.loop, order["socket"], order["incarnation"], self._identity, self._on_request
        )
        self.reaper.on_listening = self.link.hurry
        self.task.use(self.link)

    def run(self) -> None:
        """Until the task is over."""
        self.loop.run()

    def close(self) -> None:
        """Give back the descriptors; a shim's process leaves that to its end."""
        self.link.close()
        self.reaper.close()
        self.loop.close()

    async def _live(self) -> None:
        """Create the container as ordered; end when it has ended and a manager knows."""
        try:
            order = self._order
            create = codec.Request(
                order["generation"], order["ident"], "task", "create", None, {}, {}
            )
            try:
                self.link.respond(create, await self.task.create())
            except Exception as err:
                if not isinstance(err, LighterError | OSError):
                    self.report(err)
                failure = _as_error(err, order["id"])
                try:
                    await self.task.abandon()
                except (LighterError, OSError) as stuck:
                    # Without `closed`: the manager goes on with it when this shim has ended.
                    failure.message += f"; {_as_error(stuck, order['id']).message}"
                    self.link.fail(create, failure)
                    await self.link.welcomed(WELCOME_S)
                    return
                self.link.fail(create, failure)
                closed = {"container_id": order["id"], "error": failure.message}
                self.link.publish(events.CLOSED, closed)
            else:
                await self.task.closed
            await self.link.all_acknowledged()
            hit("shim.acknowledged")
            exitrecord.remove(order["exit_record"])
        except Exception as err:
            self.report(err)
        finally:
            self.loop.stop()

    def _identity(self) -> dict[str, Any]:
        order = self._order
        return {
            "kind": "shim",
            "version": VERSION,
            "protocols": list(codec.SUPPORTED),
            "incarnation": order["incarnation"],
            "namespace": order["namespace"],
            "id": order["id"],
            "bundle": order["bundle"],
            "exit_record": order["exit_record"],
            "pid": os.getpid(),
            "start": self._start_time,
            "boot_id": self._boot_id,
            "sequence": self.link.sequence,
            **self.task.identity(),
        }

    def _on_request(self, request: codec.Request) -> None:
        # Those of a manager that is gone are no reason to refuse this one's, and what ends the
        # container, which waits for nothing, is never refused.
        under_way = sum(generation == request.generation for generation, _ in self._open)
        if under_way >= MAX_OUTSTANDING and request.method not in _ENDING:
            busy = f"{request.method} task: {under_way} requests are under way"
            self.link.fail(request, Unavailable(busy))
            return
        self._open.add((request.generation, request.ident))
        self.loop.spawn(self._serve(request))

    async def _serve(self, request: codec.Request) -> None:
        method = request.method
        try:
            if request.service != shim_api.SERVICE:
                raise Unimplemented(f"call {request.service}.{method}: a shim has no such service")
            hit(f"shim.{method}-asked")
            self.link.respond(request, await self._call(method, request.body))
        except LighterError as err:
            self.link.fail(request, err)
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            bad = InvalidArgument(f"{method} task: bad request: {type(err).__name__} {err}")
            self.link.fail(request, bad)
        except Exception as err:
            self.report(err)
            self.link.fail(request, err)
        finally:
            self._open.discard((request.generation, request.ident))

    async def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        task = self.task
        if method == "start":
            return await task.start()
        if method == "kill":
            return await task.kill(_text(body, "exec_id"), int(body["signal"]), bool(body["all"]))
        if method == "exec":
            return await task.exec(_text(body, "exec_id"), body)
        if method == "attach":
            stdin, stdout, stderr = (_text(body, name) for name in ("stdin", "stdout", "stderr"))
            may_drop = bool(body.get("may_drop"))
            return await task.attach(_text(body, "exec_id"), stdin, stdout, stderr, may_drop)
        if method == "resize":
            return await task.resize(_text(body, "exec_id"), body["rows"], body["cols"])
        if method == "close_stdin":
            return await task.close_stdin(_text(body, "exec_id"))
        if method == "pause":
            return await task.pause()
        if method == "resume":
            return await task.resume()
        if method == "update":
            return await task.update(_text(body, "resources"))
        if method == "checkpoint":
            more = [str(flag) for flag in body.get("flags") or ()]
            return await task.checkpoint(_text(body, "image"), bool(body["leave_running"]), more)
        if method == "release_output":
            return await task.release_output()
        if method == "end":
            return await task.end()
        raise Unimplemented(f"call task.{method}: this shim has no such method")

    def report(self, error: BaseException) -> None:
        """Write an error down beside the task. The standard streams lead nowhere."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._report_path, flags, 0o600)
            try:
                if os.fstat(fd).st_size < MAX_REPORT:
                    text = f"{time.time():.3f} {guard.format_error(error)}\n"
                    os.write(fd, text.encode(errors="replace"))
            finally:
                os.close(fd)
        except OSError:
            pass


def _text(body: dict[str, Any], name: str) -> str:
    value = body[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, not text")
    return value


def _as_error(error: Exception, container_id: str) -> LighterError:
    """What went wrong in a create, as an error that may be sent."""
    if isinstance(error, LighterError):
        return error
    if not isinstance(error, OSError):
        return Internal(f"create task {container_id}: {type(error).__name__}: {error}")
    kind = ResourceExhausted if error.errno in _EXHAUSTED else Internal
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return kind(f"create task {container_id}: {where}{error.strerror or error}")


def claim(order: dict[str, Any], start_time: int, boot_id: str) -> bool:
    """Take the task on: whoever gets this rename or the manager's unlink done first decides."""
    record = {
        "pid": os.getpid(),
        "start": start_time,
        "boot_id": boot_id,
        "incarnation": order["incarnation"],
        "namespace": order["namespace"],
        "id": order["id"],
        "exit_record": order["exit_record"],
        "version": VERSION,
        "protocols": list(codec.SUPPORTED),
    }
    try:
        fd = os.open(order["claim"], os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            files.write_all(fd, files.json_object(record))
        finally:
            os.close(fd)
        hit("shim.claim-written")
        os.rename(order["claim"], order["record"])
    except FileNotFoundError:
        return False
    return True


def main(order: dict[str, Any], start_time: int, boot_id: str) -> None:
    """Run as the shim of one task; returns when it is over. Called right after the fork."""
    gc.enable()  # what was there before the fork is frozen and is not looked at
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    if not claim(order, start_time, boot_id):
        return
    enter(title(order), order["bundle"])
    hit("shim.claimed")
    shim = Shim(order, start_time, boot_id)
    to_null(0, 1, 2)  # the manager's; until here a failure could still be told there
    shim.run()


def title(order: dict[str, Any]) -> str:
    """Whose shim it is, for ps(1)."""
    return (
        f"lighter-shim --instance {order['instance']} "
        f"--namespace {order['namespace']} --id {order['id']}"
    )


def enter(its_title: str, directory: str) -> None:
    """Set the process title and the working directory."""
    setproctitle.setproctitle(its_title)
    os.chdir(directory)


def to_null(*fds: int) -> None:
    """Let descriptors lead nowhere."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)
