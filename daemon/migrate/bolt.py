"""Reading a bbolt database, in which containerd keeps what it knows: nested tables of bytes.

The file's form is that of go.etcd.io/bbolt (page.go, bucket.go, node.go), little-endian. It is a
B+tree of pages that are never changed in place: the newer of two meta pages with a right checksum
names the root. The file comes from outside, so nothing in it is believed: every offset is checked,
no page is visited twice on one way down, and the depth of tables is bounded.

There is a library for it in Go alone.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lighter.proto.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable

MAX_BYTES = 1 << 30
MAX_DEPTH = 32  # of pages below one table, and of tables in tables
_MAGIC = 0xED0CDAED
_VERSION = 2
_BRANCH, _LEAF, _META = 0x01, 0x02, 0x04
_BUCKET = 0x01  # a leaf's flag: its value is a table
_PAGE = struct.Struct("<QHHI")  # id, flags, count, overflow
_META_FIELDS = struct.Struct("<IIIIQQQQQQ")  # … checksum last
_LEAF_ITEM = struct.Struct("<IIII")  # flags, position, key size, value size
_BRANCH_ITEM = struct.Struct("<IIQ")  # position, key size, page
_BUCKET_HEAD = struct.Struct("<QQ")  # root page (0: it follows), sequence
_SMALLEST, _LARGEST = 512, 1 << 16
_METAS_BYTES = _LARGEST + _PAGE.size + _META_FIELDS.size  # as far as the second one reaches
_READS = 10
_LOOKS = 64  # at each page, for one reader: what several branches lead to could have no end


class _Meta(NamedTuple):
    page_size: int
    root: int
    transaction: int


class Bolt:
    """One file's content at one moment. Raises DataLoss, wherever it is looked at."""

    def __init__(self, data: bytes, name: str = "database") -> None:
        self._data = data
        self._name = name
        self._looks = 0
        self._meta = self._newest()

    @classmethod
    def read(cls, path: str) -> "Bolt":
        """The file as it is now, whole in memory.

        Who has it open may commit while it is read, and its next commit may use pages that were
        free or have just become so. So it is read anew until none has come meanwhile. Raises
        FailedPrecondition, ResourceExhausted, Unavailable.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as err:
            raise FailedPrecondition(f"read {path}: {err.strerror}") from err
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(fd).st_size
            if size > MAX_BYTES:
                raise ResourceExhausted(f"read {path}: {size} bytes, at most {MAX_BYTES}")
            for _ in range(_READS):
                file.seek(0)
                found = cls(file.read(MAX_BYTES), path)
                if cls(os.pread(fd, _METAS_BYTES, 0), path)._meta == found._meta:
                    return found
        raise Unavailable(f"read {path}: it is written to all the time, try again")

    @property
    def root(self) -> "Table":
        return Table(self, self._meta.root, b"", 0)

    def _newest(self) -> _Meta:
        # Where the second stands depends on the size of pages, which the first says if it is sound.
        sizes = [1 << n for n in range(9, 17)]
        found = [meta for at in (0, *sizes) if (meta := self._meta_at(at)) is not None]
        if not found:
            raise self.damaged("neither of its first pages is sound")
        return max(found, key=lambda meta: meta.transaction)

    def _meta_at(self, at: int) -> _Meta | None:
        begin = at + _PAGE.size
        if len(self._data) < begin + _META_FIELDS.size:
            return None
        magic, version, size, _flags, root, _sequence, _free, _high, transaction, checksum = (
            _META_FIELDS.unpack_from(self._data, begin)
        )
        covered = self._data[begin : begin + _META_FIELDS.size - 8]
        sound = (magic, version) == (_MAGIC, _VERSION) and checksum == _fnv64a(covered)
        return _Meta(size, root, transaction) if sound and _SMALLEST <= size <= _LARGEST else None

    def page(self, number: int) -> "Page":
        """A page with its overflow."""
        size = self._meta.page_size
        self._looks += 1
        if self._looks > _LOOKS * (len(self._data) // size + 1):
            raise self.damaged("it has no end")
        begin = number * size
        if begin + _PAGE.size > len(self._data):
            raise self.damaged(f"page {number} is behind its end")
        overflow = _PAGE.unpack_from(self._data, begin)[3]
        return Page(self, memoryview(self._data)[begin : begin + (overflow + 1) * size])

    def damaged(self, why: str) -> DataLoss:
        return DataLoss(f"read {self._name}: it is no sound bbolt database: {why}")


class Page:
    """The bytes of one page: branches lead to others, leaves hold keys and values."""

    def __init__(self, bolt: Bolt, data: memoryview) -> None:
        self._bolt = bolt
        self._data = data
        if len(data) < _PAGE.size:
            raise bolt.damaged("a page is cut short")
        _id, self._flags, self._count, _overflow = _PAGE.unpack_from(data)

    @property
    def is_branch(self) -> bool:
        if self._flags & (_BRANCH | _LEAF) not in (_BRANCH, _LEAF) or self._flags & _META:
            raise self._bolt.damaged(f"a page has flags {self._flags:#x}")
        return bool(self._flags & _BRANCH)

    def children(self) -> Iterator[int]:
        for at in self._items(_BRANCH_ITEM.size):
            yield _BRANCH_ITEM.unpack_from(self._data, at)[2]

    def leaves(self) -> Iterator[tuple[bool, bytes, bytes]]:
        """(whether the value is a table, key, value)"""
        for at in self._items(_LEAF_ITEM.size):
            flags, position, key_size, value_size = _LEAF_ITEM.unpack_from(self._data, at)
            begin = at + position
            end = begin + key_size + value_size
            if end > len(self._data):
                raise self._bolt.damaged("a value is behind the end of its page")
            key = bytes(self._data[begin : begin + key_size])
            yield bool(flags & _BUCKET), key, bytes(self._data[begin + key_size : end])

    def _items(self, size: int) -> Iterator[int]:
        if _PAGE.size + self._count * size > len(self._data):
            raise self._bolt.damaged("a page has more items than room")
        return (_PAGE.size + number * size for number in range(self._count))


class Table:
    """A bucket: keys in order, each with a value or a table of its own."""

    def __init__(self, bolt: Bolt, root: int, inline: bytes, depth: int) -> None:
        self._bolt = bolt
        self._root = root
        self._inline = inline
        self._depth = depth
        if depth > MAX_DEPTH:
            raise bolt.damaged(f"tables lie over {MAX_DEPTH} deep")

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for is_table, key, value in self._leaves() if not is_table)

    def tables(self) -> Iterator[tuple[bytes, "Table"]]:
        return ((key, self._below(value)) for is_table, key, value in self._leaves() if is_table)

    def table(self, *path: bytes) -> "Table | None":
        """The table at the end of this path, or None."""
        table: Table | None = self
        for name in path:
            assert table is not None
            table = next((inner for key, inner in table.tables() if key == name), None)
            if table is None:
                return None
        return table

    def _below(self, value: bytes) -> "Table":
        if len(value) < _BUCKET_HEAD.size:
            raise self._bolt.damaged("a table's head is cut short")
        root, _sequence = _BUCKET_HEAD.unpack_from(value)
        inline = b"" if root else value[_BUCKET_HEAD.size :]
        return Table(self._bolt, root, inline, self._depth + 1)

    def _leaves(self) -> Iterator[tuple[bool, bytes, bytes]]:
        if self._root:
            yield from self._walk(self._root, ())
        else:
            yield from Page(self._bolt, memoryview(self._inline)).leaves()

    def _walk(self, number: int, above: tuple[int, ...]) -> Iterator[tuple[bool, bytes, bytes]]:
        if number in above or len(above) > MAX_DEPTH:
            raise self._bolt.damaged(f"page {number} lies below itself")
        page = self._bolt.page(number)
        if not page.is_branch:
            yield from page.leaves()
            return
        for child in page.children():
            yield from self._walk(child, (*above, number))


def _fnv64a(data: bytes) -> int:
    """The hash of Fowler, Noll and Vo, 1a, of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
