"""SEC-44: reserved labels of an image are found in whichever way Go's decoder would read them."""

import pytest

from lighter.daemon.images.documents import descriptor
from lighter.daemon.images.imposed import Imposed, ImposedLabels
from tests.unit.images.build import CONFIG, LAYER, MANIFEST, Layout, as_json, tar
from tests.unit.images.conftest import NS, Place

STATUS = "containerd.io/restart.status"
IMAGE = "docker.io/library/x:1"


def imposed(place: Place, config: bytes) -> Imposed:
    """What is found below an image for another platform whose configuration is `config`.

    An import would refuse some of these; a client brings content and its names by itself.
    """
    built = Layout()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": built.add(CONFIG, config),
        "layers": [built.add(LAYER, tar({"f": b"x"}))],
    }
    root = built.index((built.add(MANIFEST, as_json(document)), "s390x"))

    async def ask() -> Imposed:
        for data in built.blobs.values():
            await place.content.add(NS, data)
        place.images.create(NS, IMAGE, descriptor(root, "root"), {})
        return await ImposedLabels(place.images, place.content).of(NS, IMAGE)

    found = place.run(ask())
    assert isinstance(found, Imposed)
    return found


@pytest.mark.parametrize(
    "config",
    [
        '{"config": {"Labels": {"LABEL": "running"}}}',
        '{"CONFIG": {"labels": {"LABEL": "running"}}}',
        '{"config": {"Labels": {"LABEL": "running"}}, "config": {"Labels": {"a": "b"}}}',
        '{"config": {"Labels": {"LABEL": "x", "LABEL": "running"}}}',
        '{"config": {"Label\u017f": {"LABEL": "running"}}, "n": ' + "1" * 5000 + "}",
    ],
)
def test_sec_44_a_reserved_label_is_found_wherever_it_stands(place: Place, config: str) -> None:
    found = imposed(place, config.replace("LABEL", STATUS).encode())
    assert found.has(STATUS, "running")
    assert not found.has(STATUS, "stopped")
    assert not found.has("a", "b")
    assert not found.unreadable


@pytest.mark.parametrize("value", [b"a\xe2\x82b", b"a\\ud800b", b"a\xff\xffb"])
def test_sec_44_what_is_no_text_is_compared_as_it_is_sent(place: Place, value: bytes) -> None:
    found = imposed(place, b'{"config": {"Labels": {"%s": "%s"}}}' % (STATUS.encode(), value))
    for replaced in ("a\ufffdb", "a\ufffd\ufffdb"):
        assert found.has(STATUS, replaced)
    assert not found.has(STATUS, "ab")


@pytest.mark.parametrize(
    "config",
    [
        '{"a":' + "[" * 100_000,
        '{"a":[' + "[]," * 100_000 + "[]]}",
        '{"config": ',
        "\n" * 5000 + "{",
    ],
)
def test_sec_44_a_document_that_cannot_be_read_may_hold_any(place: Place, config: str) -> None:
    found = imposed(place, config.encode())
    assert found.unreadable
    assert found.has(STATUS, "running")
    assert not found.has("org.example.plain", "x")


def test_sec_44_one_that_names_more_than_an_image_has_is_not_walked(place: Place) -> None:
    many = ",".join(f'{{"digest":"sha256:{number:064x}"}}' for number in range(5000))
    found = imposed(place, f'{{"all": [{many}]}}'.encode())
    assert found.unreadable


def test_of_an_image_that_is_not_here_nothing_can_come(place: Place) -> None:
    found = place.run(ImposedLabels(place.images, place.content).of(NS, "nosuch"))
    assert not found.has(STATUS, "running")
