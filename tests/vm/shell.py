"""A root shell in a virtual machine, on this terminal: `make vm-shell`.

The checkout's rpms and the test image are in /opt/payload; what is printed first installs them.
`systemctl poweroff` or Ctrl-A X ends it, and all that was done in it is gone.
"""

import os
import sys
import tempfile
from pathlib import Path

# At the end: the repository's folder `daemon` must not hide python-daemon.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.vm.disk import the_disk
from tests.vm.machine import make_overlay, qemu_argv
from tests.vm.payload import RPMS, make_payload


def main() -> None:
    sys.stdout.write("making the disks, which takes minutes the first time\n")
    disk = the_disk()
    with tempfile.TemporaryDirectory(prefix="lighter-vm-") as name:
        work = Path(name)
        payload = make_payload(work)
        make_overlay(disk.image, work / "disk.qcow2")
        argv = [*qemu_argv(disk), "-serial", "mon:stdio", "-display", "none"]
        for image, kind in ((work / "disk.qcow2", "qcow2"), (payload, "raw")):
            argv += ["-drive", f"file={image},format={kind},if=virtio,cache=unsafe"]
        sys.stdout.write(f"then: rpm -i --nodeps {RPMS}/*.rpm && systemctl enable --now lighterd\n")
        sys.stdout.flush()
        os.spawnvp(os.P_WAIT, argv[0], argv)


if __name__ == "__main__":
    main()
