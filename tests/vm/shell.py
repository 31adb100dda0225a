"""A root shell in a virtual machine, on this terminal: `make vm-shell`.

The checkout's rpms are installed, the test image is in /opt/payload.
`systemctl poweroff` or Ctrl-A X ends it, and all that was done in it is gone.
"""

import os
import sys
import tempfile
from pathlib import Path

# At the end: the repository's folder `daemon` must not hide python-daemon.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.vm.disks import make_disks
from tests.vm.machine import make_overlay, qemu_argv


def main() -> None:
    sys.stdout.write("making the disks, which takes minutes the first time\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="lighter-vm-") as name:
        work = Path(name)
        disks = make_disks(work)
        make_overlay(disks.installed.image, work / "disk.qcow2")
        argv = [*qemu_argv(disks.installed), "-serial", "mon:stdio", "-display", "none"]
        for image, kind in ((work / "disk.qcow2", "qcow2"), (disks.payload, "raw")):
            argv += ["-drive", f"file={image},format={kind},if=virtio,cache=unsafe"]
        os.spawnvp(os.P_WAIT, argv[0], argv)


if __name__ == "__main__":
    main()
