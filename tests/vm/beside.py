"""What goes on in machines of its own while the service's tests have theirs.

A guest does mostly one thing after another, and the host has two processors. So one thread here
does, in this order, what the modules of this session ask for:

    a life and its power cut        test_power.py looks at what the disk held at which moment
    the start after the cut         test_power.py goes on in that machine
    the tests of a list             test_host_tests.py tells how each of them ended

Who asks for a result waits for it, and gets the error that its making ended with.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.vm.disks import Disks
from tests.vm.guest_tests import Outcome, outcomes_of
from tests.vm.life import Cut, disk_after, live
from tests.vm.machine import Machine, switched_on


class Beside:
    """Begins at once. qemu ends with the thread that has started it: this one lives to `close`."""

    def __init__(self, disks: Disks, work: Path, modules: set[str]) -> None:
        self._disks = disks
        self._work = work
        self._undo = ExitStack()
        self._thread = ThreadPoolExecutor(1, "beside")
        if "test_power" in modules:
            self._cut = self._thread.submit(self._live)
            self._again = self._thread.submit(self._start_again)
        if "test_host_tests" in modules:
            self._outcomes = self._thread.submit(self._run_tests)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._undo.close()

    def cut(self) -> Cut:
        return self._cut.result()

    def again(self) -> Machine:
        """On the disk as the last cut left it, started and running."""
        return self._again.result()

    def outcomes(self) -> dict[str, Outcome]:
        return self._outcomes.result()

    def _live(self) -> Cut:
        cut = Cut(self._work / "writes")
        cut.log.touch()
        disks = self._disks
        with switched_on(disks.installed, disks.payload, write_log=cut.log) as machine:
            live(machine, cut)
        return cut

    def _start_again(self) -> Machine:
        image = self._work / "again.raw"
        disk_after(self.cut(), self._disks.installed, image)
        machine = switched_on(self._disks.installed, self._disks.payload, image=image)
        return self._undo.enter_context(machine)

    def _run_tests(self) -> dict[str, Outcome]:
        with switched_on(self._disks.bare, self._disks.payload) as machine:
            return outcomes_of(machine)
