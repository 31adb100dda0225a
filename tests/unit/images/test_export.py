"""Export: the same bytes again, for one platform or all, to a file, a pipe, or nobody."""

import asyncio
import fcntl
import gzip
import io
import json
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.images import platforms
from lighter.daemon.images.exporter import Exporter, ExportOptions
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.progress import Progress
from lighter.daemon.images.store import ImageStore
from lighter.proto.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
    ResourceExhausted,
)
from tests.unit.images.build import HOST, NAME, REF, Layout, docker_save, sha256
from tests.unit.images.conftest import NS, Place

pytestmark = pytest.mark.root

ONE = "docker.io/library/test:1"
TWO = "example.com/other:2"
OTHER = "s390x"
LAYERS = ({"a": b"1" * 3000}, {"b": b"2"})


def exporter(place: Place) -> Exporter:
    return Exporter(place.content, ImageStore(place.db, place.log), place.images.collector)


def export(
    place: Place,
    *names: str,
    options: ExportOptions | None = None,
    progress: list[Progress] | None = None,
) -> dict[str, bytes]:
    """What the archive holds by path, and under "" the archive itself."""
    path = place.root / "exported"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    report = progress.append if progress is not None else lambda _: None
    try:
        size = place.run(exporter(place).run(NS, names, fd, options or ExportOptions(), report))
    finally:
        os.close(fd)
    data = path.read_bytes()
    assert size == len(data)
    return {"": data, **contents(data)}


def contents(archive: bytes) -> dict[str, bytes]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            assert (entry.uid, entry.gid, entry.mtime) == (0, 0, 0), entry.name
            if entry.isreg():
                file = tar.extractfile(entry)
                assert file is not None
                files[entry.name] = file.read()
    return files


def blobs_of(files: dict[str, bytes]) -> set[str]:
    return {"sha256:" + path.rpartition("/")[2] for path in files if path.startswith("blobs/")}


def take(place: Place, layout: Layout, **options: Any) -> None:
    place.take(layout.archive(), ImportOptions(unpack=False, **options))


def two_images(place: Place) -> None:
    layout = Layout()
    image = layout.image(LAYERS, compressed=True)
    layout.list(image, name=ONE)
    layout.list(image, name=TWO)
    take(place, layout)


def for_two_platforms(*, with_other: bool = True) -> Layout:
    layout = Layout()
    index = layout.index(
        (layout.image(LAYERS), HOST), (layout.image([{"other": b"o"}], OTHER), OTHER)
    )
    layout.list(index, name=ONE)
    return layout


def test_what_is_exported_can_be_imported_and_is_the_same_again(place: Place) -> None:
    two_images(place)
    progress: list[Progress] = []
    first = export(place, TWO, "test:1", progress=progress)
    assert export(place, ONE, TWO, ONE)[""] == first[""]  # order and spelling do not matter
    assert (progress[-1].status, progress[-1].done_bytes) == ("exporting", progress[-1].total_bytes)
    for name in (ONE, TWO):
        place.run(place.images.delete(NS, name))
    assert place.is_empty()
    assert sorted(place.take(first[""])) == [ONE, TWO]
    assert export(place, ONE, TWO)[""] == first[""]


def test_names_and_blobs_are_as_containerd_writes_them(place: Place) -> None:
    two_images(place)
    files = export(place, ONE, TWO)
    assert files["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'
    listed = json.loads(files["index.json"])["manifests"]
    assert [entry["annotations"] for entry in listed] == [
        {NAME: ONE, REF: "1"},
        {NAME: TWO, REF: "2"},
    ]
    assert all(path == f"blobs/sha256/{sha256(files[path])[7:]}" for path in files if "/" in path)
    assert blobs_of(files) == place.content_rows()
    (saved,) = json.loads(files["manifest.json"])
    assert saved["RepoTags"] == ["test:1", TWO]
    config = json.loads(files[saved["Config"]])
    layers = [gzip.decompress(files[path]) for path in saved["Layers"]]
    assert [sha256(layer) for layer in layers] == config["rootfs"]["diff_ids"]
    options = ExportOptions(skip_manifest_json=True)
    assert "manifest.json" not in export(place, ONE, options=options)


def test_names_that_docker_does_not_know_get_no_tag(place: Place) -> None:
    two_images(place)
    place.images.tag(NS, ONE, "Not A Reference")
    digest = place.images.find(NS, ONE).target.digest
    place.images.tag(NS, ONE, f"example.com/x@{digest}")
    files = export(place, "Not A Reference", f"example.com/x@{digest}")
    assert json.loads(files["manifest.json"])[0]["RepoTags"] == []
    place.run(place.images.delete(NS, "Not A Reference"))
    assert "Not A Reference" in place.take(files[""])


def test_platforms(place: Place) -> None:
    layout = for_two_platforms()
    take(place, layout, all_platforms=True)
    everything = export(place, ONE, options=ExportOptions(all_platforms=True))
    assert blobs_of(everything) == set(layout.blobs)
    host = export(place, ONE)
    other = export(place, ONE, options=ExportOptions((platforms.parse(f"linux/{OTHER}"),)))
    index = place.images.find(NS, ONE).target.digest
    assert blobs_of(host) & blobs_of(other) == {index}
    assert blobs_of(host) | blobs_of(other) == set(layout.blobs)
    (saved,) = json.loads(other["manifest.json"])
    assert json.loads(other[saved["Config"]])["architecture"] == OTHER
    both = ExportOptions((platforms.parse(f"linux/{OTHER}"), platforms.host()))
    assert blobs_of(export(place, ONE, options=both)) == set(layout.blobs)


def test_what_is_missing_is_said_before_a_byte_is_written(place: Place) -> None:
    take(place, for_two_platforms())  # this host's content alone
    for names, options, message in (
        (["nope"], ExportOptions(), "^export image nope: there is no such image"),
        ([ONE], ExportOptions(all_platforms=True), "content sha256:[0-9a-f]{64} .*is missing"),
        ([ONE], ExportOptions((platforms.parse(f"linux/{OTHER}"),)), "is missing"),
        ([ONE], ExportOptions((platforms.parse("linux/riscv64"),)), "no manifest for linux/riscv"),
    ):
        with pytest.raises(NotFound, match=message):
            export(place, *names, options=options)
        assert (place.root / "exported").read_bytes() == b""
    with pytest.raises(InvalidArgument, match="no image is named"):
        export(place)


def test_a_damaged_file_is_said_before_a_byte_is_written(place: Place) -> None:
    two_images(place)
    largest = max((place.root / "content/blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    largest.chmod(0o600)
    os.truncate(largest, 10)
    with pytest.raises(DataLoss, match=largest.name):
        export(place, ONE)
    assert (place.root / "exported").read_bytes() == b""


def test_f50_a_layer_that_has_other_bytes_is_never_handed_on_as_whole(place: Place) -> None:
    """Of the same size: that is seen as its bytes pass."""
    two_images(place)
    whole = export(place, ONE)[""]
    blobs = (place.root / "content/blobs/sha256").iterdir()
    layer = next(path for path in blobs if path.read_bytes()[:2] == b"\x1f\x8b")
    layer.chmod(0o600)
    with layer.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(DataLoss, match=f"{layer.name}: its bytes have another digest"):
        export(place, ONE)
    assert (place.root / "exported").stat().st_size < len(whole)


def test_layers_that_may_not_be_handed_on(place: Place) -> None:
    layout = Layout()
    described = layout.image([{"a": b"1"}, {"b": b"2"}])
    manifest = json.loads(layout.blobs[described["digest"]])
    foreign = manifest["layers"][1]
    foreign["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    again = layout.add(described["mediaType"], json.dumps(manifest).encode())
    layout.list(again, name=ONE)
    take(place, layout)
    assert foreign["digest"] in blobs_of(export(place, ONE))
    skip = ExportOptions(skip_non_distributable=True)
    assert foreign["digest"] not in blobs_of(export(place, ONE, options=skip))
    place.run(place.content.delete(NS, foreign["digest"]))
    assert export(place, ONE, options=skip)
    with pytest.raises(NotFound, match=foreign["digest"]):
        export(place, ONE)


def test_docker_archives_are_exported_too(place: Place) -> None:
    place.take(docker_save(LAYERS, ["test:1"]), ImportOptions(unpack=False))
    files = export(place, ONE)
    (saved,) = json.loads(files["manifest.json"])
    assert [contents(files[path]) for path in saved["Layers"]] == list(LAYERS)


# --- where it is written to


def small_pipe() -> tuple[int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write_fd, False)
    return read_fd, write_fd


def large_image(place: Place) -> None:
    layout = Layout()
    layout.list(layout.image([{"a": os.urandom(1 << 20)}]), name=ONE)
    take(place, layout)


def test_a_pipe_gets_the_same_bytes(place: Place) -> None:
    large_image(place)
    read_fd, write_fd = small_pipe()
    got: list[bytes] = []

    def read() -> None:
        with os.fdopen(read_fd, "rb") as pipe:
            got.append(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    place.run(exporter(place).run(NS, [ONE], write_fd, ExportOptions()))
    os.close(write_fd)
    reader.join(30)
    assert got == [export(place, ONE)[""]]


def test_a_reader_that_goes_away_ends_it(place: Place) -> None:
    large_image(place)
    read_fd, write_fd = small_pipe()
    os.close(read_fd)
    with pytest.raises(FailedPrecondition, match="whoever read the archive went away"):
        place.run(exporter(place).run(NS, [ONE], write_fd, ExportOptions()))
    os.close(write_fd)
    assert export(place, ONE)


def test_a_full_disk_is_said(place: Place) -> None:
    two_images(place)
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(ResourceExhausted, match="export images: No space left"):
        place.run(exporter(place).run(NS, [ONE], fd, ExportOptions()))
    os.close(fd)


def test_a_stalled_reader_holds_up_nothing_but_itself_and_can_be_left(place: Place) -> None:
    large_image(place)
    pipes = [small_pipe() for _ in range(12)]

    async def steps() -> None:
        one = exporter(place)
        stalled = [
            asyncio.ensure_future(one.run(NS, [ONE], write_fd, ExportOptions()))
            for _, write_fd in pipes
        ]
        async with asyncio.timeout(20):
            for read_fd, _ in pipes:
                assert await asyncio.to_thread(os.read, read_fd, 1)  # and no more of it
            with open("/dev/null", "wb", buffering=0) as nothing:  # noqa: ASYNC230
                assert await one.run(NS, [ONE], nothing.fileno(), ExportOptions())
            for work in stalled:
                assert not work.done()
                work.cancel()
            await asyncio.wait(stalled)
        assert all(work.cancelled() for work in stalled)

    place.run(steps())
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


def test_content_that_is_being_exported_is_not_collected(place: Place) -> None:
    large_image(place)
    read_fd, write_fd = small_pipe()

    async def steps() -> bytes:
        work = asyncio.ensure_future(exporter(place).run(NS, [ONE], write_fd, ExportOptions()))
        first = await asyncio.to_thread(os.read, read_fd, 1)
        await place.images.delete(NS, ONE)
        work.add_done_callback(lambda _: os.close(write_fd))
        rest = bytearray(first)
        while part := await asyncio.to_thread(os.read, read_fd, 1 << 16):
            rest += part
        await work
        return bytes(rest)

    archive = place.run(steps())
    os.close(read_fd)
    place.run(place.images.collector.collect(NS))
    assert place.is_empty()
    assert place.take(archive, ImportOptions(unpack=False)) == [ONE]


def test_a_document_that_was_exchanged_is_told(place: Place) -> None:
    two_images(place)
    digest = place.images.find(NS, ONE).target.digest
    path = Path(place.root / "content/blobs/sha256" / digest[7:])
    path.chmod(0o600)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(LighterError, match=digest):
        export(place, ONE)
