"""System calls that Python does not offer, through libc. One function per call, errors as OSError.

Every name is the kernel's own; the man page of the same name is the reference. Loaded once in the
spawner, before the first fork: a shim calls these, it never loads a library.
"""

import ctypes
import errno
import os

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # before numbers were the same for all
_SYS_OPEN_TREE = 428
_SYS_OPENAT2 = 437
_OPEN_TREE_CLONE = 1

# mount(2) copies one page of data and cuts the rest without a word (design: 4000 at most).
MAX_MOUNT_DATA = 4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        if path is None:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return result


_FLAGS = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "dirsync": (MS_DIRSYNC, 0),
    "remount": (MS_REMOUNT, 0),
    "noatime": (MS_NOATIME, 0),
    "nodiratime": (MS_NODIRATIME, 0),
    "relatime": (MS_RELATIME, 0),
    "strictatime": (MS_STRICTATIME, 0),
    "bind": (MS_BIND, 0),
    "rbind": (MS_BIND | MS_REC, 0),
    "private": (MS_PRIVATE, 0),
    "rprivate": (MS_PRIVATE | MS_REC, 0),
    "slave": (MS_SLAVE, 0),
    "rslave": (MS_SLAVE | MS_REC, 0),
    "shared": (MS_SHARED, 0),
    "rshared": (MS_SHARED | MS_REC, 0),
}


def mount_flags(options: list[str]) -> tuple[int, str]:
    """Split fstab-style options into mount(2)'s flags and the file system's own data."""
    flags, data = 0, []
    for option in options:
        if option in _FLAGS:
            on, off = _FLAGS[option]
            flags = (flags | on) & ~off
        elif option != "defaults":
            data.append(option)
    return flags, ",".join(data)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    raw = os.fsencode(data)
    if len(raw) > MAX_MOUNT_DATA:
        raise OSError(7, f"mount data has {len(raw)} bytes, at most {MAX_MOUNT_DATA} fit", target)
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(fstype) or None,
            flags,
            raw or None,
        ),
        target,
    )


def mount_all(mounts: list[tuple[str, str, list[str]]], target: str) -> None:
    """Mount a snapshot's (type, source, options) list, in order, each on `target`."""
    for fstype, source, options in mounts:
        flags, data = mount_flags(options)
        if fstype in ("bind", "rbind"):
            flags |= MS_BIND
            mount(source, target, "", flags & ~MS_RDONLY, data)
            if flags & MS_RDONLY:  # the first call ignores every flag but MS_BIND and MS_REC
                mount("", target, "", flags | MS_REMOUNT)
        elif fstype == "overlay" and len(os.fsencode(data)) > MAX_MOUNT_DATA:
            _mount_relative(source, target, flags, data)
        else:
            mount(source, target, fstype, flags, data)


def _mount_relative(source: str, target: str, flags: int, data: str) -> None:
    """An overlay of many layers: they are named from the directory that they have in common, which
    is the process's working directory for the time of the call."""
    options = data.split(",")
    place = next((n for n, text in enumerate(options) if text.startswith("lowerdir=")), -1)
    if place < 0:
        raise OSError(7, f"mount data has {len(data)} bytes and no lowerdir", target)
    lowers = options[place].removeprefix("lowerdir=").split(":")
    directory = os.path.commonpath(lowers)
    options[place] = "lowerdir=" + ":".join(lower[len(directory) + 1 :] for lower in lowers)
    target = os.path.abspath(target)
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        mount(source, target, "overlay", flags, ",".join(options))
    finally:
        os.fchdir(before)
        os.close(before)


def umount(target: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Join the namespace that `fd` is open on (setns(2)); `kind` is its CLONE_ flag."""
    _check(_libc.setns(fd, kind))


def pivot_root(new_root: str, put_old: str) -> None:
    """Raises OSError, of an architecture whose number is not known as well."""
    machine = os.uname().machine
    number = _SYS_PIVOT_ROOT.get(machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"pivot_root: its number on {machine} is not known", new_root)
    _check(_libc.syscall(number, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def prctl(option: int, value: int = 0) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def detached(path: str) -> int:
    """A mount of the directory `path` that is nowhere (open_tree(2)): ".." does not leave it."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _check(_libc.syscall(_SYS_OPEN_TREE, -1, os.fsencode(path), flags), path)


def openat2(dir_fd: int, path: bytes | str, flags: int, resolve: int) -> int:
    """Open with the kernel's own path rules; the descriptor is close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    raw = os.fsencode(path)
    return _check(
        _libc.syscall(
            _SYS_OPENAT2, dir_fd, raw, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        ),
        raw,
    )
