"""Convert: other media types, another compression, the same files and the same snapshots."""

import asyncio
import gzip
import hashlib
import json
import os
import signal
from typing import Any

import pytest
import zstandard

from lighter.daemon.images import platforms
from lighter.daemon.images.convert import Converter, ConvertOptions
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.store import ImageStore
from lighter.proto import faults
from lighter.proto.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from lighter.shim import linux
from tests.fakes.worker import ForkWorker
from tests.unit.images.build import HOST, LAYER, MANIFEST, Layout, as_json, docker_save, sha256, tar
from tests.unit.images.conftest import NS, Place
from tests.unit.worker.harness import Worker, memfd

pytestmark = pytest.mark.root

NAME = "docker.io/library/test:1"
NEW = "example.com/new:1"
OTHER = "s390x"
LAYERS = ({"a": b"1" * 5000, "b": b"1"}, {".wh.b": b"", "c": b"2"})
DOCKER = "application/vnd.docker."


def converter(place: Place, **limits: int | None) -> Converter:
    images = ImageStore(place.db, place.log)
    return Converter(place.content, images, place.images.collector, place.worker, limits)


def convert(place: Place, source: str = NAME, name: str = NEW, **options: Any) -> str:
    image = place.run(converter(place).run(NS, source, name, ConvertOptions(**options)))
    assert image.name == name
    digest: str = image.target.digest
    return digest


def blob(place: Place, digest: str) -> bytes:
    return (place.root / "content/blobs/sha256" / digest[7:]).read_bytes()


def document(place: Place, digest: str) -> Any:
    return json.loads(blob(place, digest))


def take(place: Place, *, compressed: bool = True, unpack: bool = False) -> Layout:
    layout = Layout()
    layout.list(layout.image(LAYERS, compressed=compressed), name=NAME)
    place.take(layout.archive(), ImportOptions(unpack=unpack))
    return layout


READERS = {
    "none": lambda data: data,
    "gzip": gzip.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_layers_become_others_with_the_same_tar(place: Place, to: str, compressed: bool) -> None:
    take(place, compressed=compressed)
    convert(place, compression=to)
    manifest = document(place, place.images.find(NS, NEW).target.digest)
    suffix = "" if to == "none" else f"+{to}"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [LAYER + suffix] * 2
    for layer, files in zip(manifest["layers"], LAYERS, strict=True):
        stored = blob(place, layer["digest"])
        assert (sha256(stored), len(stored)) == (layer["digest"], layer["size"])
        assert READERS[to](stored) == tar(files)
    place.check_whole()


def test_the_new_image_shares_the_old_ones_snapshots_and_outlives_it(place: Place) -> None:
    take(place, unpack=True)
    before = place.snapshot_keys()
    convert(place, compression="zstd")
    place.worker.jobs.clear()
    place.run(place.images.unpack(NS, NEW))
    assert place.snapshot_keys() == before
    assert not [job for job in place.worker.jobs if job["job"] == "apply"]
    place.run(place.images.delete(NS, NAME))
    place.run(place.images.unpack(NS, NEW, "native"))
    place.check_whole()
    place.run(place.images.delete(NS, NEW))
    assert place.is_empty()


def test_the_same_tar_becomes_the_same_bytes(place: Place) -> None:
    take(place)
    assert convert(place, compression="zstd") == convert(place, name="two", compression="zstd")
    digest = place.images.find(NS, NAME).target.digest
    assert convert(place, name="three", compression="gzip") == digest  # nothing is to be done


def test_docker_types_become_oci_ones(place: Place) -> None:
    place.take(docker_save(LAYERS, ["test:1"]), ImportOptions(unpack=False))
    old = document(place, place.images.find(NS, NAME).target.digest)
    assert old["mediaType"].startswith(DOCKER)
    convert(place, oci=True, compression="gzip")
    new = document(place, place.images.find(NS, NEW).target.digest)
    assert DOCKER not in json.dumps(new)
    assert new["mediaType"] == place.images.find(NS, NEW).target.media_type == MANIFEST
    assert [layer["mediaType"] for layer in new["layers"]] == [LAYER + "+gzip"] * 2
    assert new["config"]["digest"] == old["config"]["digest"]
    convert(place, name="docker", compression="gzip")
    types = document(place, place.images.find(NS, "docker").target.digest)["layers"]
    assert {entry["mediaType"] for entry in types} == {
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    }
    place.check_whole()


def test_an_image_of_no_layers_stays_one(place: Place) -> None:
    """Its manifest has null for a list of none, as Go writes it."""
    layout = Layout()
    described = layout.image([])
    manifest = json.loads(layout.blobs.pop(described["digest"]))
    empty = layout.add(MANIFEST, as_json({**manifest, "layers": None}))
    layout.list(empty, name=NAME)
    place.take(layout.archive(), ImportOptions(unpack=False))
    convert(place, compression="gzip")
    assert document(place, place.images.find(NS, NEW).target.digest)["layers"] == []
    place.check_whole()


def test_the_bytes_tell_what_a_type_does_not(place: Place) -> None:
    """docker's plain tar may be compressed all the same, OCI's never is: it would not unpack."""
    pack = zstandard.ZstdCompressor().compress
    place.take(docker_save(LAYERS, ["test:1"], pack), ImportOptions(unpack=False))
    for to, suffix in (("", "+zstd"), ("zstd", "+zstd"), ("none", ""), ("gzip", "+gzip")):
        convert(place, oci=True, compression=to)
        new = document(place, place.images.find(NS, NEW).target.digest)
        for layer, files in zip(new["layers"], LAYERS, strict=True):
            assert layer["mediaType"] == LAYER + suffix
            assert READERS[suffix[1:] or "none"](blob(place, layer["digest"])) == tar(files)
    place.check_whole()


def test_platforms_of_an_index(place: Place) -> None:
    layout = Layout()
    index = layout.index(
        (layout.image(LAYERS), HOST), (layout.image([{"other": b"o"}], OTHER), OTHER)
    )
    layout.list(index, name=NAME)
    place.take(layout.archive(), ImportOptions(unpack=False, all_platforms=True))

    def architectures(**options: Any) -> list[str]:
        convert(place, compression="gzip", **options)
        entries = document(place, place.images.find(NS, NEW).target.digest)["manifests"]
        return [entry["platform"]["architecture"] for entry in entries]

    assert architectures() == [HOST]
    assert architectures(platforms=(platforms.parse(f"linux/{OTHER}"),)) == [OTHER]
    assert architectures(all_platforms=True) == [HOST, OTHER]
    with pytest.raises(NotFound, match="no manifest for linux/riscv64"):
        architectures(platforms=(platforms.parse("linux/riscv64"),))
    place.run(place.images.delete(NS, NAME))
    place.run(place.images.unpack(NS, NEW))
    place.check_whole()


def test_what_is_wrong_changes_nothing(place: Place) -> None:
    layout = take(place)
    for options, message in (({}, "nothing to convert"), ({"compression": "xz"}, "no compression")):
        with pytest.raises(InvalidArgument, match=f"^convert image {NAME}: .*{message}"):
            convert(place, **options)
    with pytest.raises(NotFound, match=r"^convert image nope: there is no such image"):
        convert(place, "nope", oci=True)
    with pytest.raises(ResourceExhausted, match="are allowed"):
        small = converter(place, max_bytes=1000)
        place.run(small.run(NS, NAME, NEW, ConvertOptions(compression="none")))
    layer = max(layout.blobs, key=lambda digest: len(gzip.compress(layout.blobs[digest])))
    path = place.root / "content/blobs/sha256" / layer[7:]
    path.chmod(0o600)
    path.write_bytes(gzip.compress(b"x" * 9000).ljust(path.stat().st_size, b"\0"))
    with pytest.raises(DataLoss, match=layer):
        convert(place, compression="zstd")
    assert place.names() == [NAME]
    place.check_whole()


def test_f49_a_full_disk_refuses_and_the_next_try_works(place: Place) -> None:
    """A twentieth of the disk stays free; nothing is left of the layer, nothing else is hurt."""
    layout = Layout()
    layout.list(layout.image([{"big": os.urandom(1 << 20)}], compressed=True), name=NAME)
    place.take(layout.archive(), ImportOptions(unpack=False))
    ingests = place.root / "content/ingest"
    linux.mount("small", str(ingests), "tmpfs", 0, "size=256k,mode=0700")
    try:
        with pytest.raises(ResourceExhausted, match=r"convert layer sha256:\w+: .* are allowed"):
            convert(place, compression="none")
        assert not list(ingests.iterdir())
    finally:
        linux.umount(str(ingests))
    assert place.names() == [NAME]
    place.check_whole()
    convert(place, compression="none")
    place.check_whole()


@pytest.mark.parametrize("to", READERS)
def test_memory_stays_small_whatever_a_layer_expands_to(place: Place, to: str) -> None:
    """A layer of 200 MB takes no more memory than one of 4 MB, when it compresses well too."""
    peaks = []
    for mib in (4, 200):
        source = memfd(gzip.compress(bytes(mib << 20), 1))
        target = os.open(place.root / f"{to}-{mib}", os.O_WRONLY | os.O_CREAT)
        with Worker() as worker:
            worker.send({"job": "recompress", "to": to}, [source, target])
            assert worker.result()["size_bytes"] == os.fstat(target).st_size
        os.close(source)
        os.close(target)
        peaks.append(worker.max_rss_bytes)
    assert peaks[1] - peaks[0] < 32 << 20, peaks


POINTS = [
    "convert.ingest-open",
    "convert.layer",
    "convert.made",
    "convert.adopted",
    "convert.named",
]


@pytest.mark.parametrize("point", POINTS)
def test_f_36_a_manager_killed_while_it_converts_leaves_nothing(
    place: Place, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(place)
    before = place.content_rows()
    place.db.close()
    place.runner.close()  # its threads would not be in the child
    place.runner = asyncio.Runner()
    pid = os.fork()
    if pid == 0:
        try:
            plan = faults.Faults({"FAULT": f"{point}:abort"})
            monkeypatch.setattr("lighter.daemon.images.convert.hit", plan.hit)
            place.open()
            convert(place, compression="zstd")
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    place.open()
    place.reopen()
    place.check_whole()
    assert place.names() == ([NAME, NEW] if point == "convert.named" else [NAME])
    assert (place.content_rows() == before) == (point != "convert.named")
    convert(place, compression="zstd")
    place.check_whole()


def test_a_worker_says_what_it_read(place: Place) -> None:
    """Digest and diff id are of the bytes that passed, whatever was promised."""
    source = place.root / "layer"
    data = gzip.compress(tar({"a": b"1"}))
    source.write_bytes(data)
    fds = [os.open(source, os.O_RDONLY), os.open(place.root / "new", os.O_WRONLY | os.O_CREAT)]
    done = place.run(ForkWorker().run({"job": "recompress", "to": "none"}, fds))
    for fd in fds:
        os.close(fd)
    assert done["digest"] == sha256(data)
    assert done["diff_id"] == done["new_digest"] == sha256(tar({"a": b"1"}))
    new = (place.root / "new").read_bytes()
    assert hashlib.sha256(new).hexdigest() == done["new_digest"][7:]
    assert done["size_bytes"] == len(new)
