"""Who a process runs as: the text of USER or --user, and an image's /etc/passwd and /etc/group.

The forms are OCI image-spec's (config.md, "User"): user, uid, user:group, uid:gid, uid:group,
user:gid. The two files are content of the image: they are parsed as bytes, a bad row is skipped
unless it is the one that was asked for, and no number is ever cut to fit.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lighter.proto.errors import InvalidArgument, NotFound

MAX_ID = (1 << 31) - 1  # runc takes no more, though the kernel does
MAX_FILE_BYTES = 10 << 20
MAX_GROUPS = 65536  # NGROUPS_MAX, linux/limits.h

# Only ASCII digits: int() would also read "0_0", " 0", "+0" and "٠", each as root.
_NUMBER = re.compile(r"[0-9]+", re.ASCII)
# Never starts with a digit or a sign, so no spelling of a number is ever looked up as a name.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]*\$?", re.ASCII)
_MAX_NAME = 256
_MAX_FIELDS = 7  # passwd(5)
_MAX_ROWS = 1 << 18  # that are looked at for one user


@dataclass(frozen=True)
class UserSpec:
    """What was asked for: a number, a name, or (group only) nothing."""

    user: int | str
    group: int | str | None = None


@dataclass(frozen=True)
class Identity:
    """What a process gets. `additional_gids` starts with `gid`; `username` and `home` may be ""."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    username: str = ""
    home: str = ""


@dataclass(frozen=True)
class _PasswdRow:
    name: bytes
    uid: int | None
    gid: int | None
    home: bytes


@dataclass(frozen=True)
class _GroupRow:
    name: bytes
    gid: int | None
    members: bytes


def parse_user(text: str) -> UserSpec:
    """Read "user[:group]"; "" is root. Raises InvalidArgument.

    Text of digits is a number and nothing else, from 0 to 2147483647. A group that is written is
    obeyed; a colon without one is an error.
    """
    if not text:
        return UserSpec(0)
    user, colon, group = text.partition(":")
    if not colon:
        return UserSpec(_number_or_name(user, text))
    return UserSpec(_number_or_name(user, text), _number_or_name(group, text))


def resolve(text: str, passwd: bytes | None, group: bytes | None) -> Identity:
    """Turn "user[:group]" into numbers, by the contents of the image's files (None: no such file).

    As containerd does: a number without a row in passwd gets group 0 and no further groups; ""
    is root with the groups that list root. The primary group is always among the additional ones:
    without it a process passes where a file denies its group and allows others (CVE-2022-36109).

    Raises InvalidArgument (bad text, bad row, file too large), NotFound (no such name).
    """
    spec = parse_user(text)
    if not text:
        return Identity(0, 0, _groups(0, b"root", group), "root", "/root")
    row = _find_user(spec.user, passwd)
    if isinstance(spec.user, int):
        uid = spec.user
    elif row is None:
        where = "it has no such user" if passwd is not None else "the image has no such file"
        raise NotFound(f"resolve user {spec.user!r} in /etc/passwd: {where}")
    else:
        uid = _checked(row.uid, row.name, "/etc/passwd")
    if spec.group is not None:
        gid = spec.group if isinstance(spec.group, int) else _gid_by_name(spec.group, group)
    else:
        gid = 0 if row is None else _checked(row.gid, row.name, "/etc/passwd")
    if row is None:
        return Identity(uid, gid, (gid,))
    return Identity(
        uid, gid, _groups(gid, row.name, group), _printable(row.name), _printable(row.home)
    )


def with_groups(identity: Identity, groups: Sequence[str], group: bytes | None) -> Identity:
    """The identity with further supplementary groups, by name or number.

    Raises InvalidArgument (bad text, bad row), NotFound (no such name).
    """
    found = dict.fromkeys(identity.additional_gids)
    for text in groups:
        asked = _number_or_name(text, text)
        found[asked if isinstance(asked, int) else _gid_by_name(asked, group)] = None
    if len(found) > MAX_GROUPS:
        raise InvalidArgument(f"add groups: over {MAX_GROUPS}")
    return replace(identity, additional_gids=tuple(found))


def _number_or_name(part: str, text: str) -> int | str:
    if _NUMBER.fullmatch(part):
        digits = part.lstrip("0") or "0"
        if len(digits) > len(str(MAX_ID)) or int(digits) > MAX_ID:
            raise InvalidArgument(f"read user {text[:80]!r}: a number is over {MAX_ID}")
        return int(digits)
    if len(part) > _MAX_NAME or not _NAME.fullmatch(part):
        raise InvalidArgument(
            f"read user {text[:80]!r}: {part[:40]!r} is neither a number nor a valid name"
        )
    return part


def _rows(content: bytes | None, file: str, fields: int, needle: bytes) -> Iterator[list[bytes]]:
    """Yield the rows with `needle` in them that have that many fields at least, one at a time."""
    if content is None:
        return
    if len(content) > MAX_FILE_BYTES:
        raise InvalidArgument(f"read {file}: {len(content)} bytes, at most {MAX_FILE_BYTES}")
    for number, piece in enumerate(_pieces(content, b"\n", needle)):
        if number >= _MAX_ROWS:
            raise InvalidArgument(f"read {file}: over {_MAX_ROWS} rows may be about the user")
        row = piece.strip().split(b":", _MAX_FIELDS)
        if len(row) >= fields and row[0] and not row[0].startswith((b"#", b"+", b"-")):
            yield row


def _pieces(data: bytes, separator: bytes, needle: bytes) -> Iterator[bytes]:
    """Yield what is between separators and has `needle` in it; others are passed over unread."""
    start = 0
    while (at := data.find(needle, start)) >= 0:
        start = max(start, data.rfind(separator, start, at) + 1)
        end = data.find(separator, at)
        end = len(data) if end < 0 else end
        yield data[start:end]
        start = end + 1


def _id_of(field: bytes) -> int | None:
    """Return the number in a row, None for anything that is not one from 0 to MAX_ID."""
    if len(field) > len(str(MAX_ID)) or not field.isdigit():
        return None
    number = int(field)
    return number if number <= MAX_ID else None


def _find_user(user: int | str, passwd: bytes | None) -> _PasswdRow | None:
    """Return the first row of that name or number, as getpwnam(3) and getpwuid(3) do."""
    name = user.encode() if isinstance(user, str) else None
    # Whatever zeros stand before it, a number's own digits are in its row.
    needle = str(user).encode() if name is None else name
    for fields in _rows(passwd, "/etc/passwd", 4, needle):
        uid = _id_of(fields[2])
        if fields[0] == name if name is not None else uid == user:
            home = fields[5] if len(fields) > 5 else b""
            return _PasswdRow(fields[0], uid, _id_of(fields[3]), home)
    return None


def _group_rows(group: bytes | None, needle: bytes) -> Iterator[_GroupRow]:
    for fields in _rows(group, "/etc/group", 3, needle):
        members = fields[3] if len(fields) > 3 else b""
        yield _GroupRow(fields[0], _id_of(fields[2]), members)


def _gid_by_name(name: str, group: bytes | None) -> int:
    wanted = name.encode()
    for row in _group_rows(group, wanted):
        if row.name == wanted:
            return _checked(row.gid, row.name, "/etc/group")
    where = "it has no such group" if group is not None else "the image has no such file"
    raise NotFound(f"resolve group {name!r} in /etc/group: {where}")


def _groups(gid: int, username: bytes, group: bytes | None) -> tuple[int, ...]:
    """Return `gid` and the groups that list the user, without repeats, in the file's order."""
    found = {gid: None}
    for row in _group_rows(group, username):
        members = _pieces(row.members, b",", username)
        if row.gid is None or username not in map(bytes.strip, members):
            continue
        if row.name != username:  # the user's own group is the primary one, where it is theirs
            found[row.gid] = None
        if len(found) > MAX_GROUPS:
            raise InvalidArgument(
                f"resolve user {_printable(username)!r}: over {MAX_GROUPS} groups in /etc/group"
            )
    return tuple(found)


def _checked(number: int | None, name: bytes, file: str) -> int:
    if number is None:
        raise InvalidArgument(
            f"resolve {_printable(name)!r} in {file}: its row has no number from 0 to {MAX_ID}"
        )
    return number


def _printable(field: bytes) -> str:
    """Decode a field for showing and for files that we write; "" when it has control characters."""
    text = field.decode("utf-8", errors="replace")
    return text if text.isprintable() else ""
