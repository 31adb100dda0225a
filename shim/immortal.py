"""Objects whose references nobody counts: what a shim only looks at stays shared with its spawner.

CPython counts a reference whenever it looks at an object, and the count is in the object: so even
reading copies a page. Since 3.12 some objects are never freed and their count is never written
(PEP 683), such as None and the built-in types. The spawner makes all that it has such objects
before its first fork. At 50 containers on 3.12 this makes 1.2 MB of a shim's 2.1.

A shim loses nothing by it: what it inherits stays in its memory in any case. What a shim or the
spawner makes later is counted and freed as ever.
"""

import ctypes
import gc
import sys
from types import CodeType

# The versions whose way is known: an object is immortal when the count's lower half is all ones
# (Include/object.h). In 3.14 more than that belongs to it.
_KNOWN = ((3, 12), (3, 13))
_IMMORTAL = 0xFFFFFFFF
_WORD_BYTES = 8


def make_immortal() -> int:
    """Stop the counting of every object there is; their number, 0 where it is not known how.

    For a process that ends by `_exit`: the interpreter's own end is not made for it.
    """
    if sys.version_info[:2] not in _KNOWN or _word_at(id(None)) != _IMMORTAL:
        return 0  # not known, or a build whose objects begin otherwise (free threading, debugging)
    # A way to any address; takes nothing.
    memory = (ctypes.c_uint64 * ((1 << 60) - 1)).from_address(0)
    fresh = {id(one): one for one in gc.get_objects()}
    found: dict[int, object] = {}
    while fresh:
        found |= fresh
        referents = _referents(list(fresh.values()))
        fresh = {id(one): one for one in referents if id(one) not in found}
    for address in found:
        place = address // _WORD_BYTES
        # Those that are immortal already may lie where nothing can be written.
        if memory[place] < _IMMORTAL >> 1:
            memory[place] = _IMMORTAL
    return len(found)


def _word_at(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _referents(objects: list[object]) -> list[object]:
    """What these objects refer to: more than the garbage collector is told of by code and built-in
    types.
    """
    referents = gc.get_referents(*objects)
    for one in objects:
        # By type(): a proxy says that it is what it stands for.
        if type(one) is CodeType:
            referents += one.co_consts, one.co_names, one.co_filename, one.co_name, one.co_qualname
            referents += one.co_linetable, one.co_exceptiontable
            referents += *one.co_varnames, *one.co_cellvars, *one.co_freevars
        elif isinstance(one, type) and issubclass(type(one), type):
            referents += one.__mro__, one.__bases__
    return referents
