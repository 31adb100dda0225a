"""USER and --user against an image's files."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.oci.users import (
    MAX_FILE_BYTES,
    MAX_ID,
    Identity,
    UserSpec,
    parse_user,
    resolve,
)
from lighter.proto.errors import InvalidArgument, NotFound

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# a comment
short:x
+nis
web:x:1000:1000:Web:/home/web:/bin/sh
huge:x:4294967296:0::/:/bin/sh
nogid:x:7:-1::/:/bin/sh
web:x:0:0:a later row of the same name::
line:x:8:8::/ho\x07me:/bin/sh"""
GROUP = b"""\
root:x:0:root
adm:x:4:root, web
web:x:1000:web
bad:x:zero:web
disk:x:6:root,web,line
empty:x:9"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Identity(0, 0, (0, 4, 6), "root", "/root")),
        ("0", Identity(0, 0, (0, 4, 6), "root", "/root")),
        ("root", Identity(0, 0, (0, 4, 6), "root", "/root")),
        ("web", Identity(1000, 1000, (1000, 4, 6), "web", "/home/web")),
        ("1000", Identity(1000, 1000, (1000, 4, 6), "web", "/home/web")),
        ("1000:6", Identity(1000, 6, (6, 4), "web", "/home/web")),
        ("web:disk", Identity(1000, 6, (6, 4), "web", "/home/web")),
        ("web:0", Identity(1000, 0, (0, 4, 6), "web", "/home/web")),
        ("77", Identity(77, 0, (0,))),
        ("77:88", Identity(77, 88, (88,))),
        ("77:disk", Identity(77, 6, (6,))),
        ("line", Identity(8, 8, (8, 6), "line", "")),
        ("007", Identity(7, 5, (5,), "nogid", "/")),
    ],
)
def test_resolve(text: str, expected: Identity) -> None:
    passwd = PASSWD.replace(b"nogid:x:7:-1", b"nogid:x:7:5") if text == "007" else PASSWD
    assert resolve(text, passwd, GROUP) == expected


def test_without_files_numbers_work_and_names_do_not() -> None:
    assert resolve("", None, None) == Identity(0, 0, (0,), "root", "/root")
    assert resolve("5:6", None, None) == Identity(5, 6, (6,))
    assert resolve("5", None, GROUP) == Identity(5, 0, (0,))
    for text in ("web", "5:web"):
        with pytest.raises(NotFound, match="no such file"):
            resolve(text, None, None)


@pytest.mark.parametrize(("text", "cause"), [("nobody", "user"), ("web:nobody", "group")])
def test_unknown_names(text: str, cause: str) -> None:
    with pytest.raises(NotFound, match=f"no such {cause}"):
        resolve(text, PASSWD, GROUP)


@pytest.mark.parametrize("text", ["huge", "nogid", "web:bad"])
def test_the_row_that_was_asked_for_must_be_sound(text: str) -> None:
    with pytest.raises(InvalidArgument, match="its row has no number"):
        resolve(text, PASSWD, GROUP)


@pytest.mark.parametrize("text", [":", "a:", ":a", "a:b:c", "a b", "a\nb", "-a", "a" * 257, "ä"])
def test_refused_text(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_user(text)


def test_large_files_and_endless_groups_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        resolve("web", b"x" * (MAX_FILE_BYTES + 1), None)
    groups = b"\n".join(b"g%d:x:%d:root" % (number, number) for number in range(1, 70000))
    with pytest.raises(InvalidArgument, match="over 65536 groups"):
        resolve("", None, groups)
    with pytest.raises(InvalidArgument, match="over 262144 rows"):
        resolve("", None, b"root:x:0:\n" * 300_000)


@pytest.mark.parametrize(
    ("group", "gids"),
    [
        (b"g:x:5:" + b"ab," * 3_000_000 + b" web \n", (7, 5)),
        (b"g:x:5:web" + b":ab" * 3_000_000, (7, 5)),
        (b"a::1\n" * 2_000_000 + b"web::9:web\ng::5:ebweb,web", (7, 5)),
        (b"g:x:5:" + b"webweb" * 1_500_000, (7,)),
    ],
    ids=["members", "fields", "rows", "one"],
)
def test_sec_39_millions_of_entries_take_no_memory(group: bytes, gids: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        assert resolve("web", b"x:x:1:1\nweb:x:7:7:::", group).additional_gids == gids
        assert tracemalloc.get_traced_memory()[1] < 5 * len(group)
    finally:
        tracemalloc.stop()


@given(st.integers(0, MAX_ID), st.integers(0, MAX_ID))
def test_numbers_come_back_as_they_are(uid: int, gid: int) -> None:
    assert parse_user(f"{uid}:{gid}") == UserSpec(uid, gid)
    assert resolve(f"{uid}:{gid}", None, None) == Identity(uid, gid, (gid,))


@given(st.text(alphabet="0123456789+-_ .exX٠٣", max_size=12), st.binary(max_size=60))
def test_no_text_that_looks_like_a_number_becomes_root_by_a_row(text: str, tail: bytes) -> None:
    """Whatever rows say, only a true zero (or no text) is root."""
    if text.strip("0") == "":
        return
    passwd = b"".join(
        row for name in (text, text.strip()) for row in (name.encode() + b":x:0:0:::\n",)
    )
    try:
        identity = resolve(text, passwd + tail, None)
    except (InvalidArgument, NotFound):
        return
    assert text[0] not in "0123456789" or identity.uid == int(text)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_give_an_answer_or_a_typed_error(passwd: bytes, group: bytes) -> None:
    for text in ("", "0", "web", "web:web", "7:web"):
        try:
            identity = resolve(text, passwd, group)
        except (InvalidArgument, NotFound):
            continue
        assert identity.additional_gids[0] == identity.gid
        assert 0 <= identity.uid <= MAX_ID
