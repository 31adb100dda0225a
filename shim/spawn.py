"""posix_spawn(3) through libc, so that a program starts with every signal at its default.

`os.posix_spawn` cannot name the two signals that glibc keeps for its threads (32 and 33), and glibc
starts a program with those ignored when they are not named. What is ignored stays so through exec,
down to the processes of a container, which would differ from those of a plain `runc run`.
"""

import ctypes
import os

MAX_STRINGS = 31  # a fixed array type: one for each length would stay in memory

# spawn.h
_SETPGROUP, _SETSIGDEF, _SETSIGMASK = 0x02, 0x04, 0x08
_ATTRIBUTES_BYTES = 512  # posix_spawnattr_t has 336 on 64-bit Linux
_SIGSET_BYTES = 128

_Strings = ctypes.c_char_p * (MAX_STRINGS + 1)
_Actions = ctypes.c_char * 256  # posix_spawn_file_actions_t has 80
_libc = ctypes.CDLL(None)


def _make_attributes() -> "ctypes.Array[ctypes.c_char]":
    """A process group of its own, nothing blocked, all signals at their default."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    _libc.posix_spawnattr_init(attributes)
    flags = ctypes.c_short(_SETPGROUP | _SETSIGDEF | _SETSIGMASK)
    _libc.posix_spawnattr_setflags(attributes, flags)
    _libc.posix_spawnattr_setpgroup(attributes, 0)
    _libc.posix_spawnattr_setsigmask(attributes, bytes(_SIGSET_BYTES))
    _libc.posix_spawnattr_setsigdefault(attributes, b"\xff" * _SIGSET_BYTES)
    return attributes


_attributes = _make_attributes()


def spawn(argv: list[str], environ: dict[str, str], stdio: tuple[int, ...] = ()) -> int:
    """Run argv[0]; `stdio` become its first descriptors. Returns its pid. Raises OSError."""
    actions = _Actions()
    pid = ctypes.c_int()
    _libc.posix_spawn_file_actions_init(actions)
    try:
        for number, fd in enumerate(stdio):
            _libc.posix_spawn_file_actions_adddup2(actions, fd, number)
        program = os.fsencode(argv[0])
        error = _libc.posix_spawn(
            ctypes.byref(pid),
            program,
            actions,
            _attributes,
            _Strings(*map(os.fsencode, argv)),
            _Strings(*(os.fsencode(f"{name}={value}") for name, value in environ.items())),
        )
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
    if error:
        raise OSError(error, os.strerror(error), argv[0])
    return pid.value
