"""Where the interpreter puts what comes next: together, not into the gaps between older objects.

A shim shares its spawner's memory page by page, and a page becomes its own with the first
reference count that changes on it. What a shim uses is half a megabyte; in the gaps that a hundred
imported modules have left it would be spread over three times as many pages. So the gaps are filled
before the modules that shims use are loaded, and once more before the first fork, so that what a
shim makes itself is together too. At 50 containers this is 0.4 MB of each shim. The code that a
shim runs is a part of what its modules hold; a copy of that part alone is another 0.15 MB on 3.11.

Sizes up to 512 bytes come from CPython's pools of 16 KiB, one size to a pool, and a free block of
an old pool is taken before a new one is begun (Objects/obmalloc.c). What is larger comes from
malloc(3). Where an allocator works otherwise this costs a bounded amount of memory in the spawner.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType

_POOL_BYTES = 16 * 1024
_POOL_HEADER_BYTES = 48
_STEP_BYTES = 16
_LARGEST_BYTES = 512
_BYTES_OVERHEAD = 33  # of a bytes object
_LARGE_BYTES = (65536, 16384, 4096, 2048, 1024, 768, 640, 528)
_MOST_BYTES = 1 << 20  # in blocks of one size


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3)): what malloc holds, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def fill_gaps() -> list[object]:
    """Take the free blocks between older objects. They stay taken while the list lives."""
    taken: list[object] = []
    _fill_heap(taken)
    for size in range(_STEP_BYTES, _LARGEST_BYTES + 1, _STEP_BYTES):
        _fill_pools(size, taken)
    return taken


@contextlib.contextmanager
def code_together() -> Iterator[None]:
    """Put the code that runs meanwhile into memory of its own, without gaps.

    Functions go on with copies, which the interpreter has to get to know anew. Code of functions
    that are made each time they are needed is copied with the function around it.
    """
    ran: dict[int, CodeType] = {}  # by id: code that is equal need not be the same

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        ran[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
    _gaps = fill_gaps()
    copies: dict[int, CodeType] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and id(one.__code__) in ran:
            one.__code__ = _copy(one.__code__, ran, copies)


def _copy(code: CodeType, ran: dict[int, CodeType], copies: dict[int, CodeType]) -> CodeType:
    """The copy of code that ran, the same one each time; other code as it is."""
    if id(code) not in ran:
        return code
    if id(code) not in copies:
        constants = (
            _copy(one, ran, copies) if type(one) is CodeType else one for one in code.co_consts
        )
        copies[id(code)] = code.replace(co_consts=tuple(constants))
    return copies[id(code)]


def _fill_pools(size: int, taken: list[object]) -> None:
    before = 0
    for _ in range(_MOST_BYTES // size):
        block = _block(size)
        taken.append(block)
        address = id(block)
        # The second block of a new pool: no old one had any left.
        if address == before + size and before % _POOL_BYTES == _POOL_HEADER_BYTES:
            return
        before = address


def _block(size: int) -> object:
    """An object that takes a block of this size."""
    if size == _STEP_BYTES:
        return object()
    if size == 2 * _STEP_BYTES:
        return float(size)
    return bytes(size - _BYTES_OVERHEAD)


def _fill_heap(taken: list[object]) -> None:
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc 2.33
    except AttributeError:
        return
    mallinfo2.restype = _MallocInfo
    for size in _LARGE_BYTES:
        for _ in range(_MOST_BYTES // size):
            top_bytes = mallinfo2().keepcost
            block = bytes(size - _BYTES_OVERHEAD)
            if mallinfo2().keepcost != top_bytes:
                break  # it came from the end of the heap: no gap has room for it
            taken.append(block)
