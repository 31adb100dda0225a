"""A file system that never answers: who opens a file in it cannot be killed until it is freed.

The server answers what a mount needs and reads every look-up without a reply; the kernel then waits
for that reply whatever signals come (linux/fs/fuse/dev.c, request_wait_answer). When the server's
descriptor closes, all who wait get an error.
"""

import ctypes
import os
import select
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_LOOKUP, _FORGET, _GETATTR, _STATFS, _INIT, _INTERRUPT, _BATCH_FORGET = 1, 2, 3, 17, 26, 36, 42
_ENOSYS = 38
_libc = ctypes.CDLL(None, use_errno=True)


class StuckFs:
    """Mounted at `path` from `__enter__` on; `free` (or `__exit__`) ends everybody's waiting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = 0
        self._fd = -1

    def __enter__(self) -> "StuckFs":
        self.path.mkdir(exist_ok=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if _libc.mount(b"stuck", os.fsencode(self.path), b"fuse", 0, options):
            error = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(error, f"mount {self.path}: {os.strerror(error)}")
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def free(self) -> None:
        """Close the connection: all who wait go on with an error, or die."""
        if self._fd < 0:
            return
        os.close(self._wake)
        self._thread.join()
        os.close(self._stop)
        os.close(self._fd)
        self._fd = -1
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()

    def _serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._fd, self._stop], [], [])
            if self._stop in readable:
                return
            request = os.read(self._fd, 1 << 20)
            _length, opcode, unique, *_rest = _IN.unpack_from(request)
            if opcode == _LOOKUP:
                self.waiting += 1
            elif opcode not in (_FORGET, _INTERRUPT, _BATCH_FORGET):
                self._answer(opcode, unique)

    def _answer(self, opcode: int, unique: int) -> None:
        body, error = b"", 0
        if opcode == _INIT:
            body = struct.pack("=IIIIHHI36x", 7, 31, 0, 0, 16, 12, 65536)
            body = body.ljust(64, b"\0")
        elif opcode == _GETATTR:
            sizes_and_times = (1, 0, 0, *(int(time.time()),) * 3, 0, 0, 0)
            mode = stat.S_IFDIR | 0o755
            attributes = struct.pack("=6Q10I", *sizes_and_times, mode, 2, 0, 0, 0, 512, 0)
            body = struct.pack("=QII", 3600, 0, 0) + attributes
        elif opcode == _STATFS:
            body = bytes(80)
        else:
            error = -_ENOSYS
        os.write(self._fd, _OUT.pack(_OUT.size + len(body), error, unique) + body)
