"""System calls that only the worker needs, through libc; the rest are in `lighter.shim.linux`.

Names are the kernel's, the man page of the same name is the reference; failures are OSError.
"""

import ctypes
import os

# linux/capability.h
CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SYS_ADMIN = 21
CAP_MKNOD = 27
CAP_SETFCAP = 31

# linux/prctl.h
PR_CAPBSET_DROP = 24

_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def capset(capabilities: int) -> None:
    """Make the bits of `capabilities` the calling thread's effective and permitted set."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    data = (_CapData * 2)(_CapData(low, low, 0), _CapData(high, high, 0))
    _check(_libc.capset(ctypes.byref(header), data))


def syncfs(fd: int) -> None:
    """Write the file system that holds `fd` to its disk."""
    _check(_libc.syncfs(fd))
