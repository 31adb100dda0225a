"""A life of the installed manager, ended by a power cut: its acts, and when they were answered."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.images import REFERENCE
from tests.vm import powercut
from tests.vm.disk import Disk
from tests.vm.installed import Installed
from tests.vm.machine import Machine
from tests.vm.payload import MOUNT


@dataclass
class Cut:
    """The log of a life's writes, and how long the log was when the manager had begun, when each
    answer had arrived, and at the end.
    """

    log: Path
    began: int = 0
    end: int = 0
    answered: dict[str, int] = field(default_factory=dict)


def live(machine: Machine, cut: Cut) -> None:
    """One act after the other, each answered, then much at a time, and the cut."""

    def answered(what: str) -> None:
        cut.answered[what] = cut.log.stat().st_size

    host = Installed(machine).await_start()
    cut.began = cut.log.stat().st_size
    host.import_image()
    answered("image")
    host.ctl("containers", "create", REFERENCE, "kept")
    answered("container")
    host.run("seven", "sh", "-c", "exit 7")
    host.await_status("seven", "stopped")
    answered("exit")
    host.run("runs")
    answered("run")
    host.ctl("namespaces", "create", "other")
    answered("namespace")
    host.run("unless", flags=("--restart", "unless-stopped"))
    # A state that is not final is not flushed for each container; the next start is to find these.
    machine.run("sync")
    # The cut comes amid work that nobody has an answer to.
    machine.begin(f"for n in $(seq 100); do ctl run -d {REFERENCE} n$n true; done", timeout_s=600)
    machine.begin(["ctl", "-n", "other", "images", "import", f"{MOUNT}/image.tar"])
    machine.await_that("ctl containers ls -q | grep -q ^n1", 120)
    machine.cut_power()
    cut.end = cut.log.stat().st_size


def disk_after(cut: Cut, disk: Disk, image: Path) -> None:
    """Make `image` the disk as the last cut has left it."""
    powercut.replay(disk.image, cut.log, powercut.last_flush(cut.log, cut.end), image)
