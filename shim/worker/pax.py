"""PAX extended header records (POSIX.1-2017, pax, "pax Extended Header"), as an entry needs them.

A header is a run of records "<length> <key>=<value>\\n", where the length counts itself. Extended
attributes travel as SCHILY.xattr.<name>, which is what every builder of images writes.
"""

from lighter.proto.errors import InvalidArgument

XATTR_PREFIX = b"SCHILY.xattr."
_NO_NUL = (b"path", b"linkpath")
# Longer numbers than these are not times or sizes but work for the parser.
_MAX_DIGITS = 32


class Extended:
    """What the extended headers before an entry say; None where they say nothing."""

    __slots__ = (
        "atime_ns",
        "gid",
        "linkpath",
        "mtime_ns",
        "path",
        "size",
        "sparse",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.linkpath: bytes | None = None
        self.size: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.mtime_ns: int | None = None
        self.atime_ns: int | None = None
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: list[tuple[bytes, bytes]] = []  # what stands under GNU.sparse, in order

    def update(self, body: bytes) -> None:
        """Take the records of one extended header. Raises InvalidArgument."""
        for key, value in records(body):
            if key.startswith(XATTR_PREFIX):
                self.xattrs[key[len(XATTR_PREFIX) :]] = value
            elif key.startswith(b"GNU.sparse."):
                self.sparse.append((key, value))
            elif value:  # an empty value takes the record back: the ustar field holds
                self._set(key, value)

    def _set(self, key: bytes, value: bytes) -> None:
        if key in _NO_NUL and b"\0" in value:
            raise InvalidArgument(f"PAX record {key.decode()} holds a NUL byte")
        if key == b"path":
            self.path = value
        elif key == b"linkpath":
            self.linkpath = value
        elif key == b"size":
            self.size = decimal(value)
        elif key == b"uid":
            self.uid = decimal(value)
        elif key == b"gid":
            self.gid = decimal(value)
        elif key == b"mtime":
            self.mtime_ns = nanoseconds(value)
        elif key == b"atime":
            self.atime_ns = nanoseconds(value)


def records(body: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) pairs of one header, in order. Raises InvalidArgument."""
    found = []
    start, end = 0, len(body)
    while start < end:
        space = body.find(b" ", start, start + _MAX_DIGITS)
        if space < 0:
            raise InvalidArgument("PAX record has no length")
        stop = start + decimal(body[start:space])
        if stop > end or stop <= space + 1 or body[stop - 1] != 0x0A:
            raise InvalidArgument("PAX record does not end where its length says")
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        if not key or not equals or b"\0" in key:
            raise InvalidArgument("PAX record has no key")
        found.append((key, value))
        start = stop
    return found


def decimal(text: bytes) -> int:
    """A number that is digits and nothing else: int() alone would take "1_0", "+1" and " 1"."""
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise InvalidArgument(f"PAX number {text[:_MAX_DIGITS]!r} is not a decimal number")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """A PAX time: seconds with an optional sign and fraction, of which nine digits count."""
    negative = text.startswith(b"-")
    whole, _, fraction = text[negative:].partition(b".")
    ns = decimal(whole) * 1_000_000_000
    if fraction:
        ns += decimal(fraction[:9].ljust(9, b"0"))
    return -ns if negative else ns
