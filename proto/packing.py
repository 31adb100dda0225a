"""msgpack for short commands: a message's bytes, without loading the library for a handful of them.

Loading it takes a fifth of the time that `ctl version` takes. So a process that has it uses it, as
managers and shims do; one that has not reads and writes short messages here, and loads it for the
first one that is not short. Both give the same bytes, values and refusals.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import sys
from _struct import pack as _struct
from _struct import unpack_from as _unstruct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# An answer about one task fits; what is longer has too many values for a loop in Python.
SHORT_BYTES = 2048

_NIL, _FALSE, _TRUE = b"\xc0", b"\xc2", b"\xc3"


def pack(value: Any) -> bytes:
    """`value` is None, bool, int, float, str, bytes, list, tuple or dict of these.

    Raises TypeError, OverflowError, ValueError.
    """
    library = _loaded()
    if library is not None:
        packed: bytes = library.packb(value, use_bin_type=True)
        return packed
    parts: list[bytes] = []
    _write(value, parts.append)
    return b"".join(parts)


def unpack(data: bytes, most_items: int) -> Any:
    """The one value in `data`, with lists for arrays; texts are the only keys of maps but bytes.

    Raises ValueError for what is not msgpack, incomplete, followed by more, an extension type, text
    that is not UTF-8, or an array or map of more than `most_items`; TypeError, RecursionError,
    OverflowError.
    """
    size = len(data)
    library = _loaded()
    if library is None:
        if size <= SHORT_BYTES:
            return _read(data)
        import msgpack

        library = msgpack
    try:
        return library.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_ext,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=min(size, most_items),
            max_map_len=min(size, most_items),
            max_ext_len=0,
        )
    # Not a ValueError, as its other errors of format, stack and extra data are.
    except library.UnpackException as err:
        raise ValueError(f"{type(err).__name__}: {err}") from err


def _loaded() -> Any:
    """The library; None also while another thread is loading it: `dumps` is its last name."""
    library = sys.modules.get("msgpack")
    return library if hasattr(library, "dumps") else None


def _read(data: bytes) -> Any:
    reader = _Reader(data)
    value = reader.value()
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes follow")
    return value


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ValueError(f"ext type {code}")


def _write(value: Any, put: Callable[[bytes], None]) -> None:
    if value is None:
        put(_NIL)
    elif value is True:
        put(_TRUE)
    elif value is False:
        put(_FALSE)
    elif isinstance(value, str):
        text = value.encode()
        put(_head(len(text), 0xA0, 31, (0xD9, 0xDA, 0xDB)))
        put(text)
    elif isinstance(value, int):
        put(_integer(value))
    elif isinstance(value, (list, tuple)):
        put(_head(len(value), 0x90, 15, (0, 0xDC, 0xDD)))
        for item in value:
            _write(item, put)
    elif isinstance(value, dict):
        put(_head(len(value), 0x80, 15, (0, 0xDE, 0xDF)))
        for key, item in value.items():
            _write(key, put)
            _write(item, put)
    elif isinstance(value, (bytes, bytearray)):
        put(_head(len(value), 0, -1, (0xC4, 0xC5, 0xC6)))
        put(bytes(value))
    elif isinstance(value, float):
        put(_struct(">Bd", 0xCB, value))
    else:
        raise TypeError(f"can not serialize {type(value).__name__!r} object")


def _head(size: int, short: int, most: int, codes: tuple[int, int, int]) -> bytes:
    """What stands before `size` bytes or items; the code for one byte is 0 where there is none."""
    if size <= most:
        return bytes((short | size,))
    if codes[0] and size <= 0xFF:
        return bytes((codes[0], size))
    if size <= 0xFFFF:
        return _struct(">BH", codes[1], size)
    return _struct(">BI", codes[2], size)


def _integer(value: int) -> bytes:
    """In the fewest bytes."""
    if 0 <= value <= 0x7F:
        return bytes((value,))
    if -0x20 <= value < 0:
        return bytes((value & 0xFF,))
    if value >= 0:
        for code, letter, limit in ((0xCC, "B", 8), (0xCD, "H", 16), (0xCE, "I", 32)):
            if value < 1 << limit:
                return _struct(f">B{letter}", code, value)
        if value < 1 << 64:
            return _struct(">BQ", 0xCF, value)
    for code, letter, limit in ((0xD0, "b", 7), (0xD1, "h", 15), (0xD2, "i", 31), (0xD3, "q", 63)):
        if -(1 << limit) <= value < 0:
            return _struct(f">B{letter}", code, value)
    raise OverflowError("Integer value out of range")


# By the code: the letter of _struct for a number, or for the size of what follows.
_NUMBERS = {
    0xCA: (">f", 4),
    0xCB: (">d", 8),
    0xCC: (">B", 1),
    0xCD: (">H", 2),
    0xCE: (">I", 4),
    0xCF: (">Q", 8),
    0xD0: (">b", 1),
    0xD1: (">h", 2),
    0xD2: (">i", 4),
    0xD3: (">q", 8),
}
_SIZES = {0: (">B", 1), 1: (">H", 2), 2: (">I", 4)}


class _Reader:
    """A position in a short message."""

    __slots__ = ("_data", "at")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def value(self) -> Any:
        code = self._bytes(1)[0]
        if code <= 0x7F:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code >= 0xA0 and code <= 0xBF:
            return self._bytes(code & 0x1F).decode()
        if code <= 0x8F:
            return self._map(code & 0x0F)
        if code <= 0x9F:
            return self._array(code & 0x0F)
        if code in _NUMBERS:
            return self._number(*_NUMBERS[code])
        return self._rare(code)

    def _rare(self, code: int) -> Any:
        if code == 0xC0:
            return None
        if code in (0xC2, 0xC3):
            return code == 0xC3
        if 0xC4 <= code <= 0xC6:
            return self._bytes(self._size(code - 0xC4))
        if 0xD9 <= code <= 0xDB:
            return self._bytes(self._size(code - 0xD9)).decode()
        if code in (0xDC, 0xDD):
            return self._array(self._size(code - 0xDC + 1))
        if code in (0xDE, 0xDF):
            return self._map(self._size(code - 0xDE + 1))
        raise ValueError(f"code {code:#x} has no place in a message")

    def _bytes(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise ValueError("it is incomplete")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def _number(self, form: str, size: int) -> Any:
        return _unstruct(form, self._bytes(size))[0]

    def _size(self, width: int) -> int:
        size: int = self._number(*_SIZES[width])
        if size > len(self._data):
            raise ValueError(f"{size} bytes or items are more than the message has")
        return size

    def _array(self, size: int) -> list[Any]:
        return [self.value() for _ in range(size)]

    def _map(self, size: int) -> dict[Any, Any]:
        found = {}
        for _ in range(size):
            key = self.value()
            if not isinstance(key, (str, bytes)):
                raise ValueError(f"{type(key).__name__} is not allowed for map key")
            found[key] = self.value()
        return found
