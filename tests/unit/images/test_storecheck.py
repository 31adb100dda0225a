"""The check of the stores beside work that goes on meanwhile."""

import asyncio
import os
from pathlib import Path

import pytest

from lighter.daemon.storecheck.found import LEFT, REPAIRED, Counted, Found
from lighter.daemon.storecheck.service import StoreCheck
from lighter.proto.errors import FailedPrecondition
from lighter.proto.paths import Root
from tests.unit.images.conftest import NS, Place

pytestmark = pytest.mark.root


def checker(place: Place) -> StoreCheck:
    return StoreCheck(
        Root(str(place.root)),
        place.db,
        place.log,
        place.content,
        place.images.collector,
        place.snapshotters,
    )


async def findings(check: StoreCheck, *, repair: bool = True) -> list[Found]:
    return [one async for one in check.run(Counted(), repair=repair)]


def rot(path: str) -> None:
    size = os.stat(path).st_size
    os.chmod(path, 0o600)
    Path(path).write_bytes(bytes(size))


def bring(path: str, data: bytes) -> None:
    Path(path + ".new").write_bytes(data)
    os.rename(path + ".new", path)


def test_content_that_work_needs_is_named_and_left(place: Place) -> None:
    digest = place.run(place.content.add(NS, b"document"))
    rot(place.content.path(digest))
    with place.images.collector.pin() as pin:
        pin.content(NS, digest)
        (found,) = place.run(findings(checker(place)))
        assert (found.name, found.outcome) == (digest, LEFT)
        assert place.content.has(NS, digest)
    (found,) = place.run(findings(checker(place)))
    assert (found.outcome, found.namespace) == (REPAIRED, NS)
    assert not place.content.has(NS, digest) and not os.path.exists(place.content.path(digest))


def test_what_comes_anew_while_it_is_looked_at_is_not_removed(place: Place) -> None:
    """A damaged blob that somebody brings again, between the look and the act."""
    whole = {place.run(place.content.add(NS, data)): data for data in (b"one", b"two")}
    for digest in whole:
        rot(place.content.path(digest))

    async def steps() -> list[Found]:
        async with place.content.still():
            checking = asyncio.ensure_future(findings(checker(place)))
            while not place.content._files._waiters:  # noqa: ASYNC110 (read, and to be acted upon)
                await asyncio.sleep(0.01)
            for digest, data in whole.items():
                bring(place.content.path(digest), data)
        return await checking

    assert place.run(steps()) == []
    for digest, data in whole.items():
        assert place.run(place.content.read_document(NS, digest, 10)) == data


def test_one_repair_at_a_time(place: Place) -> None:
    for data in (b"one", b"two"):
        rot(place.content.path(place.run(place.content.add(NS, data))))
    check = checker(place)

    async def steps() -> None:
        first = check.run(Counted(), repair=True)
        await first.__anext__()
        with pytest.raises(FailedPrecondition, match="a repair is under way"):
            await findings(check)
        assert await findings(check, repair=False)
        await first.aclose()

    place.run(steps())


def test_a_directory_that_a_record_names_as_its_parent_stays(place: Place) -> None:
    """Though its own record is lost: by a damage that no foreign key has seen."""
    overlay = place.overlay
    place.run(overlay.prepare(NS, "work"))
    place.run(overlay.commit(NS, "base", "work"))
    place.run(overlay.prepare(NS, "child", "base"))
    place.db.durable.execute("PRAGMA foreign_keys = OFF")
    with place.db.durable_transaction() as tx:
        tx.execute("DELETE FROM snapshots WHERE key = 'base'")
    place.db.durable.execute("PRAGMA foreign_keys = ON")
    database, directory = place.run(findings(checker(place)))
    assert database.problem == "row 2 of snapshots names none of snapshots"
    assert (directory.outcome, directory.note) == (LEFT, "snapshot child names it as its parent")
    assert os.path.isdir(overlay.files(1))
    place.run(overlay.remove(NS, "child"))
    place.run(findings(checker(place)))
    assert not os.path.exists(overlay.files(1))


def test_f54_a_digest_that_is_no_text_is_set_right_or_keeps_its_file(place: Place) -> None:
    digest = place.run(place.content.add(NS, b"document"))
    torn = digest[:-1].encode() + bytes([ord(digest[-1]) | 0x80])
    with place.db.durable_transaction() as tx:
        tx.execute("UPDATE content SET digest = CAST(? AS TEXT)", (torn,))
    (found,) = place.run(findings(checker(place)))
    assert (found.outcome, found.note) == (REPAIRED, f"it is {digest}")
    assert place.run(place.content.read_document(NS, digest, 100)) == b"document"
    with place.db.durable_transaction() as tx:
        tx.execute("UPDATE content SET digest = CAST(? AS TEXT)", (b"sha256:\x81" + b"0" * 63,))
    assert [found.outcome for found in place.run(findings(checker(place)))] == [LEFT, LEFT]
    assert os.path.exists(place.content.path(digest))
