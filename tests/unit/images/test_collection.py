"""A collection beside an import and an unpack: at every single change of the database."""

import shutil
from collections.abc import Callable

import pytest

from lighter.daemon.images.importer import ImportOptions
from tests import images
from tests.unit.images.conftest import NS, Place

pytestmark = pytest.mark.root


def collecting(place: Place) -> Callable[[], int]:
    """From now on each durable commit is followed by a collection; returns how many there were."""
    count = 0
    within = False

    def collect() -> None:
        nonlocal count, within
        if not within:
            within = True
            place.images.collector._drop_rows(NS)
            within = False
            count += 1

    place.db.on_mutation = collect
    return lambda: count


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_f69_a_collection_at_every_step_takes_nothing_of_an_import(
    place: Place, snapshotter: str
) -> None:
    count = collecting(place)
    options = ImportOptions(snapshotter=snapshotter)
    archive = images.busybox_archive(compressed=True)
    assert place.take(archive, options) == [images.REFERENCE]
    assert count() >= 5
    place.check_whole()
    assert len(place.blobs()) == 3
    assert len(place.snapshot_keys(snapshotter)) == 1
    place.run(place.images.unpack(NS, images.REFERENCE, snapshotter))


def test_f38_a_store_that_cannot_be_tidied_keeps_no_other_from_it(place: Place) -> None:
    place.take(images.busybox_archive())
    with place.db.durable_transaction() as tx:
        tx.execute("DELETE FROM images")
    shutil.rmtree(place.root / "content/blobs")
    with pytest.raises(FileNotFoundError):
        place.run(place.images.recover())
    assert place.snapshot_keys() == set() and place.snapshot_directories() == 0


def test_f69_an_image_that_is_removed_while_it_is_unpacked_leaves_nothing(place: Place) -> None:
    archive = images.busybox_archive()
    removed = []

    def remove(job: dict[str, object]) -> None:
        if job["job"] == "apply":
            removed.append(job)
            with place.db.durable_transaction() as tx:
                tx.execute("DELETE FROM images")
            place.images.collector._drop_rows(NS)

    place.worker.before = remove
    place.take(archive)
    assert removed
    place.run(place.images.collector.collect(NS))
    assert place.is_empty()
