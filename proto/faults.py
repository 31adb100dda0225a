"""Fault points: places where a test can make this process fail, wait, stop or die.

    FAULT=point:action[:n][,point:action[:n]…]     e.g. FAULT=create.row-committed:abort:2

`n` (default 1) is the pass through the point at which the action happens; 0 means at each pass.
Actions: `error` raises Internal, `bug` an error that nobody expects, `delay` sleeps
`FAULT_DELAY_S` seconds (default 1), `abort` ends the process at once as SIGKILL would, `stop` sends
SIGSTOP to itself. `FAULT_TRACE=file` appends a line "pid point" at each pass, which is how a sweep
learns the points there are. A spawner does not play its shims' life where faults are planned, so
they are made of other functions than without; with `FAULT_REHEARSED=1` it does, and passes no point
meanwhile.

A packaged build sets ENABLED to False in this file; then `hit` is an empty call.
"""

import os
import signal
import time

from lighter.proto.errors import Internal

ENABLED = True


def _parse(text: str) -> dict[str, tuple[str, int]]:
    plan: dict[str, tuple[str, int]] = {}
    for term in filter(None, text.split(",")):
        point, _, rest = term.partition(":")
        action, _, count = rest.partition(":")
        if action not in ("error", "bug", "delay", "abort", "stop"):
            raise SystemExit(f"FAULT={text}: unknown action {action!r} at point {point!r}")
        plan[point] = (action, int(count or "1"))
    return plan


class Faults:
    """The plan of one process. Shims are forked from a process that has read it already."""

    __slots__ = ("delay_s", "passes", "plan", "rehearsed", "trace")

    def __init__(self, environ: "os._Environ[str] | dict[str, str]") -> None:
        self.plan = _parse(environ.get("FAULT", "")) if ENABLED else {}
        self.trace = environ.get("FAULT_TRACE", "") if ENABLED else ""
        self.delay_s = float(environ.get("FAULT_DELAY_S", "1"))
        self.rehearsed = environ.get("FAULT_REHEARSED", "") == "1"
        self.passes: dict[str, int] = {}

    def put_aside(self) -> tuple[dict[str, tuple[str, int]], str]:
        """Pass points without a plan until `put_back` gets what this returns."""
        plan, trace = self.plan, self.trace
        self.plan, self.trace = {}, ""
        return plan, trace

    def put_back(self, aside: tuple[dict[str, tuple[str, int]], str]) -> None:
        self.plan, self.trace = aside

    def forbids_rehearsal(self) -> bool:
        """Whether a pass through some point does anything, and nobody has asked to play before."""
        return bool(self.plan or self.trace) and not self.rehearsed

    def hit(self, point: str) -> None:
        """Pass the named point; does nothing unless the plan names it."""
        if not self.plan and not self.trace:
            return
        if self.trace:
            with open(self.trace, "a", encoding="ascii") as file:
                file.write(f"{os.getpid()} {point}\n")
        action, at = self.plan.get(point, ("", -1))
        if not action:
            return
        count = self.passes[point] = self.passes.get(point, 0) + 1
        if at not in (0, count):
            return
        if action == "error":
            raise Internal(f"pass fault point {point}: asked to fail")
        if action == "bug":
            raise RuntimeError(f"pass fault point {point}: asked to be wrong")
        if action == "delay":
            time.sleep(self.delay_s)
        elif action == "abort":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)


# The one object per process that is reached without being passed: a fault point must cost one
# name at the place it marks, and a second plan in one process would have no meaning.
_faults = Faults(os.environ)
hit = _faults.hit
forbids_rehearsal = _faults.forbids_rehearsal
put_aside = _faults.put_aside
put_back = _faults.put_back
