"""Indexes, manifests and configs: what is read, and that everything else is one typed error."""

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.images.documents import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    diff_ids,
    load,
    parse,
)
from lighter.proto.errors import InvalidArgument

DIGEST = "sha256:" + "a" * 64
PIECE = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": 3}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": PIECE, "layers": [PIECE]}
INDEX = {
    "schemaVersion": 2,
    "manifests": [{**PIECE, "platform": {"os": "linux", "architecture": "amd64"}}],
}


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_manifest_and_an_index() -> None:
    manifest = parse(text(MANIFEST), OCI_MANIFEST, "x")
    assert isinstance(manifest, Manifest)
    assert (manifest.config.digest, manifest.layers[0].size) == (DIGEST, 3)
    index = parse(text(INDEX), OCI_INDEX, "x")
    assert isinstance(index, Index)
    assert index.manifests[0].platform == {"os": "linux", "architecture": "amd64"}


def test_null_is_a_list_of_none() -> None:
    """Go writes it so."""
    assert parse(text({**MANIFEST, "layers": None}), OCI_MANIFEST, "x").layers == ()
    assert parse(text({**INDEX, "manifests": None}), OCI_INDEX, "x").manifests == ()
    for document, media_type, key in (
        (MANIFEST, OCI_MANIFEST, "layers"),
        (INDEX, OCI_INDEX, "manifests"),
    ):
        without = {name: value for name, value in document.items() if name != key}
        for changed in (without, {**document, key: False}, {**document, key: {}}):
            with pytest.raises(InvalidArgument, match=f"{key} is not a list"):
                parse(text(changed), media_type, "x")


@pytest.mark.parametrize(
    ("document", "media_type", "cause"),
    [
        ({**MANIFEST, "manifests": []}, OCI_MANIFEST, "ambiguous"),
        ({**INDEX, "layers": []}, OCI_INDEX, "ambiguous"),
        ({**INDEX, "config": PIECE}, OCI_INDEX, "ambiguous"),
        (MANIFEST, DOCKER_MANIFEST, "it says that it is"),
        ({**MANIFEST, "mediaType": OCI_INDEX}, OCI_MANIFEST, "it says that it is"),
        (MANIFEST, OCI_INDEX, "it says that it is"),
        ({**INDEX, "mediaType": None}, OCI_INDEX, "it says that it is"),
        (MANIFEST, "text/html", "neither an index nor a manifest"),
        ({**MANIFEST, "schemaVersion": 1}, OCI_MANIFEST, "schemaVersion"),
        ({**MANIFEST, "schemaVersion": True}, OCI_MANIFEST, "schemaVersion"),
    ],
)
def test_sec_20_ambiguous_documents_are_refused(
    document: dict[str, Any], media_type: str, cause: str
) -> None:
    with pytest.raises(InvalidArgument, match=cause):
        parse(text(document), media_type, "x")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\xef\xbb\xbf{}", "BOM"),
        (json.dumps({}).encode("utf-16"), "utf-8"),
        (b'{"a":1,"a":1}', "stands twice"),
        (b'{"x":{"a":1,"a":1}}', "stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 1_000_000 + b"}", "digits"),
        (b'{"a":' + b"9" * 101 + b"}", "101 digits"),
        (b'{"a":[' + b"{}," * 50_000 + b"{}]}", "it has 100003 values"),
        (b'{"a":[' + b"[]," * 50_000 + b"[]]}", "it has 100003 values"),
        (b'{"a":[' + b"0," * 100_000 + b"0]}", "it has 100002 values"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":"\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff":1}', "surrogates not allowed"),
        (b'{"a":"\xff"}', "utf-8"),
        (b"", "Expecting value"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b" " * (9 << 20), "at most"),
    ],
)
def test_sec_20_and_22_damaged_json_is_refused(data: bytes, cause: str) -> None:
    with pytest.raises(InvalidArgument, match=f"parse x: .*{cause}"):
        load(data, "x")


def test_a_surrogate_pair_is_text() -> None:
    assert load(b'{"a":"\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}


_ODD: list[Any] = [None, True, -1, 1.5, "", "sha256:x", [], {}, [None], {"": None}, 10**30, "\0"]


def _places(value: Any) -> list[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found = [(value, key) for key, _ in pairs]
    for key in list(range(len(value))) if isinstance(value, list) else list(value):
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def test_sec_22_2000_mutated_documents_are_values_or_typed_errors() -> None:
    choice = random.Random(22)
    config = {"rootfs": {"type": "layers", "diff_ids": [DIGEST]}, "os": "linux"}
    refused = 0
    for _ in range(2000):
        original, media_type = choice.choice(
            [(MANIFEST, OCI_MANIFEST), (INDEX, OCI_INDEX), (config, "")]
        )
        document = json.loads(text(original))
        for _ in range(choice.randint(1, 3)):
            holder, key = choice.choice(_places(document))
            holder[key] = copy.deepcopy(choice.choice(_ODD))
        try:
            if media_type:
                parse(text(document), media_type, "x")
            else:
                diff_ids(document, "x")
        except InvalidArgument:
            refused += 1
    assert 1000 < refused < 2000


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    for attempt in (lambda: load(data, "x"), lambda: parse(data, OCI_MANIFEST, "x")):
        try:
            attempt()
        except InvalidArgument:
            pass


@pytest.mark.parametrize(
    "piece",
    [
        {**PIECE, "size": -1},
        {**PIECE, "size": True},
        {**PIECE, "size": 1 << 63},
        {**PIECE, "size": "3"},
        {**PIECE, "mediaType": ""},
        {**PIECE, "digest": "sha256:../../x"},
        {**PIECE, "digest": DIGEST + "\n"},
        {**PIECE, "annotations": {"a": 1}},
        {**PIECE, "platform": "linux"},
        {**PIECE, "platform": {"os": "linux"}},
        None,
    ],
)
def test_sec_23_a_descriptor_that_is_none(piece: object) -> None:
    with pytest.raises(InvalidArgument, match=r"parse x: config: "):
        parse(text({**MANIFEST, "config": piece}), OCI_MANIFEST, "x")
