"""Where the interpreter puts what comes next: together, not into the gaps between older objects.

A shim shares its spawner's memory page by page, and a page becomes its own with the first
reference count that changes on it. What a shim uses is half a megabyte; in the gaps that a hundred
imported modules have left it would be spread over three times as many pages. So the gaps are filled
before the modules that shims use are loaded, and once more before the first fork, so that what a
shim makes itself is together too. At 50 containers this is 0.4 MB of each shim.

Sizes up to 512 bytes come from CPython's pools of 16 KiB, one size to a pool, and a free block of
an old pool is taken before a new one is begun (Objects/obmalloc.c). What is larger comes from
malloc(3). Where an allocator works otherwise this costs a bounded amount of memory in the spawner.
"""

import ctypes

_POOL_BYTES = 16 * 1024
_POOL_HEADER_BYTES = 48
_STEP_BYTES = 16
_LARGEST_BYTES = 512
_BYTES_OVERHEAD = 33  # of a bytes object
_LARGE_BYTES = (65536, 16384, 4096, 2048, 1024, 768, 640, 528)
_MOST_BYTES = 1 << 20  # in blocks of one size
_MOST_SMALL_BYTES = 128 << 10  # in blocks of one size that malloc gives


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
        libc = ctypes.CDLL(None)
        mallinfo2 = libc.mallinfo2  # glibc 2.33
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
    # Smaller ones, which are for what is not Python's own. They stay taken for good.
    libc.malloc.restype = ctypes.c_void_p
    for size in range(_LARGEST_BYTES, 0, -_STEP_BYTES):
        for _ in range(_MOST_SMALL_BYTES // size):
            top_bytes = mallinfo2().keepcost
            libc.malloc(size)
            if mallinfo2().keepcost != top_bytes:
                break
