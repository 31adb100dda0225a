"""The three disks that the machines of a session have, made once, at the same time.

The rpms are installed on a disk that nobody runs from, as an installer of a distribution does it:
natively that takes seconds, in an emulated machine minutes. So is the versioned directory that an
upgrade brings along: what a machine upgrades is `lighter`, whose scripts are what happens then.
tests/systemd has all of both packages installed and upgraded on a running system.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.packaging.rpms import NEXT
from tests.vm.disk import Disk, the_disk
from tests.vm.payload import is_core, make_payload, packages
from tests.vm.powercut import Mounted

_INSTALL_S = 300
_INSTALL = "rpm -i --nodeps /var/tmp/*.rpm && rm /var/tmp/*.rpm && systemctl enable lighterd"


@dataclass(frozen=True)
class Disks:
    """`bare` is the system; `installed` has the rpms too, and lighterd enabled; `payload` is what
    every machine has beside one of them.
    """

    bare: Disk
    installed: Disk
    payload: Path


def make_disks(work: Path) -> Disks:
    with ThreadPoolExecutor() as threads:
        bare = threads.submit(the_disk)
        payload = threads.submit(make_payload, work)
    return Disks(bare.result(), _installed(bare.result(), work), payload.result())


def _installed(bare: Disk, work: Path) -> Disk:
    installed = Disk(work / "installed")
    installed.directory.mkdir()
    installed.kernel.symlink_to(bare.kernel)
    installed.initrd.symlink_to(bare.initrd)
    subprocess.run(["cp", "--sparse=always", bare.image, installed.image], check=True, timeout=300)
    with Mounted(installed.image, work / "mounted") as root:
        for rpm in (*packages(work), *(newer for newer in packages(work, NEXT) if is_core(newer))):
            shutil.copy(rpm, root / "var/tmp")
        done = subprocess.run(
            ["chroot", root, "sh", "-c", _INSTALL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
        )
    assert done.returncode == 0, f"install the rpms: {done.stdout}{done.stderr}"
    return installed
