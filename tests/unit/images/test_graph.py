"""Walks over images: what is chosen, and that no graph costs more than the budget."""

import asyncio
import json
import time
from typing import Any

import pytest

from lighter.daemon.content.digest import Digest
from lighter.daemon.images import platforms
from lighter.daemon.images.chain import chain_ids
from lighter.daemon.images.documents import OCI_INDEX, descriptor
from lighter.daemon.images.graph import MAX_NODES, Graph, Walker
from lighter.daemon.images.platforms import Platform
from lighter.daemon.types import Descriptor
from lighter.proto.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from tests.unit.images.build import HOST, MANIFEST, Layout, as_json

OURS = Platform("linux", HOST)


class Counted:
    """Documents in memory; `reads` counts."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.reads = 0

    def size(self, digest: str) -> int | None:
        return len(self.blobs[digest]) if digest in self.blobs else None

    async def read(self, digest: str, max_bytes: int) -> bytes:
        self.reads += 1
        return self.blobs[digest]


def walk(built: Layout, root: dict[str, Any], wanted: Platform | None = None) -> Graph:
    return asyncio.run(Walker(Counted(built.blobs), wanted).walk(descriptor(root, "root")))


def resolve(built: Layout, root: dict[str, Any], wanted: Platform) -> Descriptor:
    walker = Walker(Counted(built.blobs), wanted)
    return asyncio.run(walker.resolve(descriptor(root, "root"))).descriptor


def index_of(built: Layout, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return built.add(OCI_INDEX, as_json({"schemaVersion": 2, "manifests": entries}))


def test_a_diamond_is_seen_once() -> None:
    built = Layout()
    image = built.image([{"a": b"1"}])
    left, right = index_of(built, [image]), index_of(built, [image, image])
    root = index_of(built, [left, right])
    source = Counted(built.blobs)
    graph = asyncio.run(Walker(source, None).walk(descriptor(root, "root")))
    assert set(graph.found) == set(built.blobs)
    assert source.reads == 4


def test_what_a_manifest_refers_to_is_no_part_of_it() -> None:
    """`subject` and `artifactType` (distribution-spec 1.1) lead nowhere."""
    built = Layout()
    image, other = built.image([{"a": b"1"}]), built.image([{"b": b"2"}])
    manifest = json.loads(built.blobs[image["digest"]])
    manifest |= {"subject": other, "artifactType": "application/x.signature"}
    signed = built.add(MANIFEST, as_json(manifest))
    found = walk(built, signed).found
    assert other["digest"] not in found
    assert set(found) == {signed["digest"], *walk(built, image).found} - {image["digest"]}


def test_sec_21_a_deep_graph_is_refused() -> None:
    built = Layout()
    root = built.image([])
    for _ in range(8):
        root = index_of(built, [root])
    assert len(walk(built, root).manifests) == 1
    root = index_of(built, [root])
    for attempt in (walk, resolve):
        with pytest.raises(ResourceExhausted, match="over 8 deep"):
            attempt(built, root, OURS)


def test_sec_21_a_wide_graph_is_refused_in_time() -> None:
    built = Layout()
    level = [built.image([{"a": bytes([n])}]) for n in range(20)]
    for depth in range(5):
        level = [
            index_of(built, [{**entry, "annotations": {"n": f"{depth}{n}"}} for entry in level])
            for n in range(500)
        ]
        level = level[:500]
    root = index_of(built, level)
    begun = time.monotonic()
    for attempt in (walk, resolve):
        with pytest.raises(ResourceExhausted):
            attempt(built, root, OURS)
    assert time.monotonic() - begun < 20


def test_sec_21_a_list_longer_than_the_budget_is_refused() -> None:
    built = Layout()
    piece = built.add("application/octet-stream", b"x")
    root = index_of(built, [index_of(built, [piece] * (MAX_NODES - 1)), piece, piece])
    with pytest.raises(ResourceExhausted, match=f"over {MAX_NODES} pieces"):
        walk(built, root)


def test_a_descriptor_with_the_wrong_size_is_refused() -> None:
    built = Layout()
    image = built.image([])
    with pytest.raises(DataLoss, match="its descriptor says"):
        walk(built, {**image, "size": image["size"] + 1})


def test_what_is_missing_is_named() -> None:
    built = Layout()
    image = built.image([{"a": b"1"}])
    for digest in list(built.blobs):
        kept = built.blobs.pop(digest)
        with pytest.raises(NotFound, match=digest):
            walk(built, image)
        built.blobs[digest] = kept


def test_a_document_of_the_other_kind_is_refused() -> None:
    built = Layout()
    image = built.image([])
    with pytest.raises(InvalidArgument):
        walk(built, {**image, "mediaType": OCI_INDEX})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("linux/amd64", "amd64"),
        ("linux/x86_64", "amd64"),
        ("linux/386", "386"),
        ("linux/arm/v7", "arm/v7"),
        ("linux/arm/v6", "arm/v6"),
        ("linux/arm/v8", "arm/v7"),
        ("linux/arm64", "arm64/v8"),
        ("linux/arm64/v8", "arm64/v8"),
        ("linux/aarch64", "arm64/v8"),
    ],
)
def test_the_best_platform_is_chosen(wanted: str, expected: str) -> None:
    built = Layout()
    offered = ["386", "arm/v6", "arm/v7", "arm64/v8", "amd64"]
    images = {name: built.image([{"a": name.encode()}], arch="x") for name in offered}
    entries = []
    for name, image in images.items():
        architecture, _, variant = name.partition("/")
        platform = {"os": "linux", "architecture": architecture}
        entries.append({**image, "platform": platform | ({"variant": variant} if variant else {})})
    root = index_of(built, entries)
    assert resolve(built, root, platforms.parse(wanted)).digest == images[expected]["digest"]


def test_nothing_newer_or_foreign_is_chosen() -> None:
    assert platforms.rank(platforms.parse("linux/arm/v7"), platforms.parse("linux/arm/v6")) is None
    assert platforms.rank(platforms.parse("linux/amd64"), platforms.parse("linux/386")) is None
    assert platforms.rank(platforms.parse("windows/amd64"), platforms.parse("linux/amd64")) is None
    for text in ("linux", "linux/", "a/b/c/d", ""):
        with pytest.raises(InvalidArgument):
            platforms.parse(text)


def test_an_entry_without_platform_is_judged_by_its_config() -> None:
    built = Layout()
    theirs = built.image([{"a": b"1"}], arch="s390x")
    ours = built.image([{"a": b"2"}])
    assert resolve(built, index_of(built, [theirs, ours]), OURS).digest == ours["digest"]
    with pytest.raises(NotFound, match="only for linux/s390x"):
        resolve(built, index_of(built, [theirs]), OURS)


def test_what_is_no_image_in_an_index_is_passed_over() -> None:
    built = Layout()
    artifact = built.add("application/vnd.example", b"not JSON")
    ours = built.image([{"a": b"2"}])
    assert resolve(built, index_of(built, [artifact, ours]), OURS).digest == ours["digest"]


@pytest.mark.parametrize("wanted", [f"linux/{HOST}", "linux/amd64/v3"])
def test_an_artifact_that_says_no_platform_stands_behind_the_image(wanted: str) -> None:
    built = Layout()
    artifact = built.artifact()
    arch = wanted.split("/")[1]
    ours = {**built.image([{"a": b"2"}], arch=arch), "platform": {"os": "linux"}}
    ours["platform"]["architecture"] = arch
    for entries in ([artifact, ours], [ours, artifact]):
        found = resolve(built, index_of(built, entries), platforms.parse(wanted))
        assert found.digest == ours["digest"]
    alone = resolve(built, index_of(built, [artifact]), platforms.parse(wanted))
    assert alone.digest == artifact["digest"]


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "by config"])
@pytest.mark.parametrize("nested", [False, True], ids=["beside", "below"])
def test_an_artifact_is_no_image_for_a_platform_that_an_index_lacks(
    nested: bool, stated: bool
) -> None:
    built = Layout()
    artifact = built.artifact()
    theirs = built.image([{"a": b"1"}], arch="s390x")
    if stated:
        theirs["platform"] = {"os": "linux", "architecture": "s390x"}
    attestation = {
        **built.image([{"a": b"2"}]),
        "platform": {"os": "unknown", "architecture": "unknown"},
    }
    for entries in ([artifact, theirs, attestation], [theirs, attestation, artifact]):
        root = index_of(built, [index_of(built, entries)] if nested else entries)
        with pytest.raises(NotFound, match=f"no manifest for {OURS}, only for linux/s390x$"):
            resolve(built, root, OURS)
    alone = index_of(built, [attestation, artifact])
    assert resolve(built, alone, OURS).digest == artifact["digest"]


def test_chain_ids_are_those_of_the_specification() -> None:
    """OCI image-spec, config.md: ChainID(A|B|C) = Digest(ChainID(A|B) + " " + DiffID(C))."""
    assert chain_ids([]) == ()
    assert chain_ids(["sha256:" + "1" * 64]) == ("sha256:" + "1" * 64,)
    # printf 'sha256:11… sha256:22…' | sha256sum, by coreutils
    pair = chain_ids(["sha256:" + "1" * 64, "sha256:" + "2" * 64])
    assert pair[1] == "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"


def test_an_index_keeps_each_entry_by_its_place_whatever_is_chosen() -> None:
    built = Layout()
    images = {arch: built.image([{"a": arch.encode()}], arch=arch) for arch in ("s390x", "arm64")}
    root = built.index(*((of, arch) for arch, of in images.items()))
    graphs = [walk(built, root, Platform("linux", arch)) for arch in images]
    assert [len(graph.manifests) for graph in graphs] == [1, 1]
    for graph in graphs:
        assert graph.labels[Digest.parse(root["digest"])] == {
            f"containerd.io/gc.ref.content.m.{place}": of["digest"]
            for place, of in enumerate(images.values())
        }


def test_documents_stand_before_what_names_them() -> None:
    """Also where one is named beside, and before, an index that names it too."""
    built = Layout()
    image = built.image([{"a": b"1"}])
    inner = index_of(built, [image, built.image([{"b": b"2"}])])
    root = index_of(built, [image, inner])
    order = [one.digest for one in walk(built, root).documents]
    assert len(order) == len(set(order)) == 4
    assert order.index(image["digest"]) < order.index(inner["digest"]) < 3
    assert order[3] == root["digest"]
