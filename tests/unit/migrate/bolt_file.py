"""Small bbolt files for tests, made page by page as the format says."""

import struct
from collections.abc import Mapping, Sequence

PAGE = 4096

Tree = Mapping[bytes, "bytes | Tree"]


def meta(root: int, transaction: int, number: int, page_size: int = PAGE) -> bytes:
    fields = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, page_size, 0, root, 0, 2, 100, transaction)
    hashed = 0xCBF29CE484222325
    for byte in fields:
        hashed = (hashed ^ byte) * 0x100000001B3 % (1 << 64)
    return page(number, 0x04, 0, fields + struct.pack("<Q", hashed))


def page(number: int, flags: int, count: int, body: bytes) -> bytes:
    head = struct.pack("<QHHI", number, flags, count, max(0, -(-(16 + len(body)) // PAGE) - 1))
    return (head + body).ljust(-(-(16 + len(body)) // PAGE) * PAGE, b"\0")


def items(tree: Tree) -> list[tuple[int, bytes, bytes]]:
    """Tables are put inline, into their value."""
    made = []
    for key, value in sorted(tree.items()):
        if isinstance(value, bytes):
            made.append((0, key, value))
        else:
            inner = items(value)
            body = leaf_body(inner)
            head = struct.pack("<QHHI", 0, 0x02, len(inner), 0)
            made.append((1, key, struct.pack("<QQ", 0, 0) + head + body))
    return made


def leaf_body(leaves: Sequence[tuple[int, bytes, bytes]]) -> bytes:
    heads, data = b"", b""
    for number, (flags, key, value) in enumerate(leaves):
        position = 16 * (len(leaves) - number) + len(data)
        heads += struct.pack("<IIII", flags, position, len(key), len(value))
        data += key + value
    return heads + data


def branch_body(children: Sequence[tuple[bytes, int]]) -> bytes:
    heads, data = b"", b""
    for number, (key, child) in enumerate(children):
        position = 16 * (len(children) - number) + len(data)
        heads += struct.pack("<IIQ", position, len(key), child)
        data += key
    return heads + data


def database(tree: Tree) -> bytes:
    """Two meta pages, an empty list of free pages, and the root's leaf at page 3."""
    leaves = items(tree)
    pages = [meta(3, 7, 0), meta(3, 6, 1), page(2, 0x10, 0, b"")]
    return b"".join([*pages, page(3, 0x02, len(leaves), leaf_body(leaves))])
