"""Reading bbolt files: sound ones, ones that a crash left, and ones that somebody has made up."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lighter.daemon.migrate.bolt import MAX_DEPTH, Bolt, Table
from lighter.proto.errors import DataLoss, LighterError, Unavailable
from tests.unit.migrate.bolt_file import PAGE, Tree, branch_body, database, leaf_body, meta, page

TREE: Tree = {b"v1": {b"ns": {b"images": {b"x": {b"digest": b"d"}}, b"k": b"v"}}, b"a": b"b" * 6000}


def whole(table: Table) -> Tree:
    return {**dict(table.values()), **{key: whole(inner) for key, inner in table.tables()}}


def test_what_was_written_is_read() -> None:
    bolt = Bolt(database(TREE))
    assert whole(bolt.root) == TREE
    found = bolt.root.table(b"v1", b"ns", b"images", b"x")
    assert found is not None and dict(found.values()) == {b"digest": b"d"}
    assert bolt.root.table(b"v1", b"other") is None


def test_the_newer_sound_meta_page_counts() -> None:
    """A crash amid a write of one leaves the other."""
    data = bytearray(database({b"a": b"new"}) + page(4, 2, 1, leaf_body([(0, b"a", b"old")])))
    data[PAGE : 2 * PAGE] = meta(4, 6, 1)
    assert whole(Bolt(bytes(data)).root) == {b"a": b"new"}
    data[16 + 30] ^= 1
    assert whole(Bolt(bytes(data)).root) == {b"a": b"old"}
    data[PAGE + 16 + 30] ^= 1
    with pytest.raises(DataLoss, match="neither of its first pages is sound"):
        Bolt(bytes(data))


def test_a_file_that_is_committed_to_meanwhile_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "meta.db"
    before = database({b"a": b"old"})
    path.write_bytes(before)
    after = [before[:PAGE] + meta(3, 8, 1) + database({b"a": b"new"})[2 * PAGE :]]
    pread = os.pread

    def committed(fd: int, size: int, offset: int) -> bytes:
        """As if somebody had written before the second look."""
        if after:
            path.write_bytes(after.pop())
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", committed)
    assert whole(Bolt.read(str(path)).root) == {b"a": b"new"}
    after += [before[:PAGE] + meta(3, 100 - n, 1) + before[2 * PAGE :] for n in range(50)]
    with pytest.raises(Unavailable, match="it is written to all the time"):
        Bolt.read(str(path))


def test_branches_lead_to_leaves_in_order() -> None:
    leaves = [page(4 + n, 2, 1, leaf_body([(0, b"k%d" % n, b"v%d" % n)])) for n in range(3)]
    root = page(3, 1, 3, branch_body([(b"k0", 4), (b"k1", 5), (b"k2", 6)]))
    bolt = Bolt(b"".join([meta(3, 1, 0), meta(3, 0, 1), page(2, 16, 0, b""), root, *leaves]))
    assert list(bolt.root.values()) == [(b"k0", b"v0"), (b"k1", b"v1"), (b"k2", b"v2")]


@pytest.mark.parametrize(
    ("root", "why"),
    [
        (page(3, 1, 1, branch_body([(b"k", 3)])), "lies below itself"),
        (page(3, 1, 1, branch_body([(b"k", 1 << 40)])), "is behind its end"),
        (page(3, 2, 9999, b""), "more items than room"),
        (
            page(3, 2, 1, struct.pack("<IIII", 0, 16, 1 << 31, 1 << 31)),
            "behind the end of its page",
        ),
        (page(3, 7, 0, b""), "has flags 0x7"),
        (page(3, 2, 1, leaf_body([(1, b"t", b"short")])), "head is cut short"),
        # Each way down is short, and there are 16 ** 30 of them.
        (
            b"".join(
                page(n, 1, 16, branch_body([(b"%d" % k, n + 1) for k in range(16)]))
                for n in range(3, 3 + MAX_DEPTH - 1)
            ),
            "it has no end",
        ),
    ],
)
def test_a_made_up_file_is_refused(root: bytes, why: str) -> None:
    last = page(3 + len(root) // PAGE, 2, 1, leaf_body([(0, b"a", b"b")]))
    bolt = Bolt(b"".join([meta(3, 1, 0), meta(3, 0, 1), page(2, 16, 0, b""), root, last]))
    with pytest.raises(DataLoss, match=why):
        whole(bolt.root)


def test_tables_in_tables_have_a_bound() -> None:
    tree: Tree = {b"end": b""}
    for _ in range(MAX_DEPTH + 2):
        tree = {b"t": tree}
    with pytest.raises(DataLoss, match="deep"):
        whole(Bolt(database(tree)).root)


@given(st.integers(0, len(database(TREE)) - 1), st.binary(min_size=1, max_size=40))
@example(0, b"\0" * 40)
def test_any_bytes_give_a_table_or_one_error(at: int, noise: bytes) -> None:
    data = bytearray(database(TREE))
    data[at : at + len(noise)] = noise
    try:
        whole(Bolt(bytes(data)).root)
    except LighterError as error:
        assert isinstance(error, DataLoss)
