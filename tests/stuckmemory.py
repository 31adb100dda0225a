"""A process whose memory stands still: ps(1) of it waits, as of one on a dead network disk.

It writes to a page of a file on a frozen file system: the kernel holds its mapping while the file
system is asked for leave (linux/mm/memory.c, do_page_mkwrite). A second thread then wants to change
that mapping, and has all of the process's memory locked meanwhile: who reads its arguments waits.
"""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.harness import await_that
from tests.loopdisk import ext4_at

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_PROGRAM = """
import ctypes, mmap, sys, threading
file = open(sys.argv[1], "r+b")
page = mmap.mmap(file.fileno(), 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
libc = ctypes.CDLL(None)
print("mapped", flush=True)
sys.stdin.readline()
threading.Thread(target=lambda: libc.memset(ctypes.c_void_p(address), 1, 1)).start()
sys.stdin.readline()
libc.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ)
"""


@contextmanager
def stuck_process(directory: Path, comm: str = "stuck") -> Iterator[int]:
    """Its pid; `directory` is made. It ends with the block, when its file system goes on."""
    directory.mkdir()
    program = directory.with_name(comm)
    program.symlink_to(sys.executable)
    with ext4_at(directory):
        file = directory / "page"
        file.write_bytes(bytes(4096))
        argv = [program, "-c", _PROGRAM, str(file)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, **pipes) as process, _open(directory) as frozen:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()
            fcntl.ioctl(frozen, _FIFREEZE, 0)
            try:
                for wanted in (1, 2):
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                    await_that(lambda n=wanted: _waiting(process.pid) >= n, 30, "a thread waits")
                reader = threading.Thread(target=_read_arguments, args=(process.pid,))
                reader.start()
                reader.join(1)
                assert reader.is_alive(), "its arguments can be read"
                yield process.pid
            finally:
                fcntl.ioctl(frozen, _FITHAW, 0)
                process.kill()
            reader.join()


@contextmanager
def _open(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _waiting(pid: int) -> int:
    """How many of its threads the kernel lets wait without an end: proc_pid_stat(5)."""
    found = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            found += stat.read_text().rpartition(")")[2].split()[0] == "D"
    return found


def _read_arguments(pid: int) -> None:
    with suppress(OSError):
        Path(f"/proc/{pid}/cmdline").read_bytes()
