"""Namespaces in which Docker may do as it likes: what it mounts and routes is gone with them.

Docker makes bridges and firewall rules, bind-mounts network namespaces below /run/docker and
writes to /etc/docker. Here it has a network and mounts of its own, and so has the manager that
it uses: a container's root file system is mounted by dockerd and must be seen by the shim.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

_SET_UP = """
ip link set lo up
mkdir "$1/etc" "$1/etc.work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc.work" overlay /etc
mount -t tmpfs tmpfs /run
echo made
exec cat
"""


class Enclosure:
    """`base` is a directory for whoever is inside, `prefix` the words before a program's."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="lighter-docker-", dir="/tmp"))
        # It ends with its standard input, whatever ends the tests.
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--propagation", "private"),
                *("sh", "-ec", _SET_UP, "sh", str(self.base)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"made\n", "the namespaces cannot be made"
        spaces = f"/proc/{self._holder.pid}/ns"
        self.prefix = ["nsenter", f"--mount={spaces}/mnt", f"--net={spaces}/net", "--"]

    def run(self, *argv: str, timeout: float = 30) -> "subprocess.CompletedProcess[bytes]":
        """A program inside, to its end; the caller looks at what came of it."""
        return subprocess.run(
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def mounts(self, below: Path | None = None) -> list[str]:
        """Mount points inside that lie below a directory, `base` by default."""
        lines = Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if f" {below or self.base}/" in line]

    def close(self) -> None:
        """End them; nothing may run inside any more."""
        self._holder.communicate()
        shutil.rmtree(self.base)
