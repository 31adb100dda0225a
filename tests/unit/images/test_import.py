"""Import and unpack, end to end with real workers: what is named, what is refused, what is left."""

import asyncio
import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.images import platforms
from lighter.daemon.images.importer import Importer, ImportOptions
from lighter.daemon.images.progress import Progress
from lighter.daemon.images.worker import read_files
from lighter.proto import faults
from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    NotFound,
    ResourceExhausted,
)
from tests import images as test_images
from tests.unit.images.build import HOST, INDEX, Layout, docker_save, sha256, tar
from tests.unit.images.conftest import NS, Place

pytestmark = pytest.mark.root

LAYERS = ({"a": b"1", "b": b"1"}, {".wh.b": b"", "c": b"2"}, {"a": b"3"})
FILES = {"/a": b"3", "/b": None, "/c": b"2"}
NAME = "docker.io/library/test:1"


def layout(layers: Any = LAYERS, name: str = NAME, **more: Any) -> Layout:
    built = Layout()
    built.list(built.image(layers, **more), name=name)
    return built


def contents(place: Place, snapshotter: str = "overlayfs", name: str = NAME) -> Any:
    async def steps() -> Any:
        top = await place.images.unpack(NS, name, snapshotter)
        mounts = await place.snapshotters[snapshotter].view(NS, "look", top)
        try:
            return await read_files(place.worker, mounts, list(FILES))
        finally:
            await place.snapshotters[snapshotter].remove(NS, "look")

    return place.run(steps())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_an_image_is_imported_unpacked_and_deleted(
    place: Place, snapshotter: str, compressed: bool
) -> None:
    archive = layout(compressed=compressed).archive()
    assert place.take(archive, ImportOptions(snapshotter=snapshotter)) == [NAME]
    assert contents(place, snapshotter) == FILES
    assert len(place.snapshot_keys(snapshotter)) == 3
    place.check_whole()
    place.run(place.images.delete(NS, NAME))
    assert place.is_empty()
    with pytest.raises(NotFound, match=f"delete image {NAME}: there is no such image"):
        place.run(place.images.delete(NS, NAME))


@pytest.mark.parametrize("compressed", [False, True])
def test_the_busybox_archive(place: Place, compressed: bool) -> None:
    progress: list[Progress] = []
    archive = test_images.busybox_archive(compressed=compressed)
    assert place.take(archive, progress=progress) == [test_images.REFERENCE]
    assert [item.status for item in progress[-1:]] == ["done"]
    assert {"importing", "unpacking", "done"} <= {item.status for item in progress}
    assert all(item.done_bytes <= item.total_bytes for item in progress if item.total_bytes)
    (summary,), cursor = place.run(place.images.list(NS))
    assert (summary.platforms, summary.problem, cursor) == ((f"linux/{HOST}",), "", "")
    rows = place.db.rows("SELECT sum(size_bytes) AS size FROM content")
    assert summary.size_bytes == rows[0]["size"]
    details = place.run(place.images.get(NS, "busybox:test"))
    assert details.config["config"]["Cmd"] == ["sh"]
    assert len(details.manifest["layers"]) == 1


def test_an_archive_that_another_program_wrote(place: Place) -> None:
    """skopeo compresses the layer and writes a manifest of its own: the snapshots are the same."""
    target = place.root / "oci.tar"
    source = test_images.busybox_archive()
    done = subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--quiet"),
            *(f"oci-archive:{source}:test", f"oci-archive:{target}:example.com/app:2"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert place.take(target) == ["example.com/app:2"]
    top = place.run(place.images.unpack(NS, "example.com/app:2"))
    place.take(source)
    assert place.run(place.images.unpack(NS, test_images.REFERENCE)) == top


def test_docker_save_archives(place: Place) -> None:
    archive = docker_save(LAYERS, ["test:1", "example.com/user/app:v2"])
    assert place.take(archive) == [NAME, "example.com/user/app:v2"]
    assert contents(place) == FILES
    again = place.images.find(NS, NAME).target
    place.take(archive)
    assert place.images.find(NS, NAME).target == again
    place.check_whole()


UNNAMED = {"digests": True, "skip_digest_for_named": True}


@pytest.mark.parametrize(
    ("annotations", "options", "names"),
    [
        ({"name": NAME}, {}, [NAME]),
        ({"name": NAME, "ref": "1"}, {}, [NAME]),
        ({"ref": "example.com/a:1"}, {}, ["example.com/a:1"]),
        ({"ref": "v1"}, {"base_name": "foo/bar"}, ["foo/bar:v1"]),
        ({"ref": "foo/bar:v2"}, {"base_name": "foo/bar"}, ["foo/bar:v2"]),
        ({}, {"base_name": "foo", "digests": True}, ["foo@DIGEST"]),
        ({"ref": "v1"}, {"base_name": "foo", "digests": True}, ["foo:v1", "foo@DIGEST"]),
        ({"ref": "v1"}, {"base_name": "foo", **UNNAMED}, ["foo:v1"]),
        ({"ref": "v1"}, {"base_name": "foo", "skip_digest_for_named": True}, ["foo:v1"]),
        ({"name": NAME}, {"base_name": "foo", **UNNAMED}, ["foo@DIGEST"]),
        ({}, {"base_name": "foo", **UNNAMED}, ["foo@DIGEST"]),
        ({}, {"index_name": "whole"}, ["whole"]),
    ],
)
def test_names_are_made_as_ctr_makes_them(
    place: Place, annotations: dict[str, str], options: dict[str, Any], names: list[str]
) -> None:
    built = Layout()
    image = built.image(LAYERS)
    built.list(image, **annotations)
    expected = [name.replace("DIGEST", image["digest"]) for name in names]
    assert place.take(built.archive(), ImportOptions(**options)) == expected


def test_a_tag_alone_gets_the_date_as_base(place: Place) -> None:
    built = Layout()
    built.list(built.image(LAYERS), ref="v1")
    days = [time.strftime("import-%Y-%m-%d:v1", time.gmtime())]
    names = place.take(built.archive())
    days.append(time.strftime("import-%Y-%m-%d:v1", time.gmtime()))
    assert names[0] in days


def test_sec_33_a_base_name_keeps_other_names_out(place: Place) -> None:
    place.take(layout(name="docker.io/library/busybox:latest").archive())
    mine = place.images.find(NS, "busybox").target
    evil = Layout()
    evil.list(evil.image([{"evil": b"x"}]), name="docker.io/library/busybox:latest")
    evil.list(evil.image([{"evil": b"y"}]), ref="docker.io/library/busybox:latest")
    evil.list(evil.image([{"evil": b"w"}]), name="example.com/minefield:latest")
    evil.list(evil.image([{"good": b"z"}]), ref="v1")
    names = place.take(evil.archive(), ImportOptions(base_name="example.com/mine"))
    assert names == ["example.com/mine:v1"]
    assert place.images.find(NS, "busybox").target == mine


def test_an_archive_without_a_name_says_so(place: Place) -> None:
    built = Layout()
    built.list(built.image(LAYERS))
    with pytest.raises(InvalidArgument, match="no image of a name that was asked for"):
        place.take(built.archive())
    assert place.is_empty()


def test_only_what_is_needed_becomes_content(place: Place) -> None:
    built = layout()
    stray = built.add("application/octet-stream", b"nobody's")
    place.take(built.archive())
    assert place.content_rows() == set(built.blobs) - {stray["digest"]}


def test_every_missing_piece_is_named_and_nothing_is_left(place: Place) -> None:
    whole = layout()
    for digest in list(whole.blobs):
        part = layout()
        del part.blobs[digest]
        with pytest.raises(NotFound, match=f"content {digest} .*is missing"):
            place.take(part.archive())
        assert place.is_empty()


def test_what_the_store_had_and_is_collected_meanwhile_is_missing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name may come of it: its image would lack a layer."""
    whole, part = layout(), layout(name="example.com/part:1")
    _config, layer, *_ = part.blobs
    del part.blobs[layer]
    place.take(whole.archive())
    walk = Importer._walk

    async def walk_and_collect(*of: Any) -> Any:
        graph = await walk(*of)
        await place.images.delete(NS, NAME)
        return graph

    monkeypatch.setattr(Importer, "_walk", walk_and_collect)
    with pytest.raises(NotFound, match=f"content {layer} is missing"):
        place.take(part.archive())
    assert place.is_empty()


def test_an_index_brings_this_platform_and_others_when_asked(place: Place) -> None:
    built = Layout()
    ours = built.image(LAYERS)
    theirs = built.image([{"x": b"other"}], arch="s390x")
    built.list(built.index((ours, HOST), (theirs, "s390x")), name=NAME)
    place.take(built.archive())
    assert theirs["digest"] not in place.content_rows()
    assert contents(place) == FILES
    place.take(built.archive(), ImportOptions(all_platforms=True))
    assert place.content_rows() == set(built.blobs)
    assert len(place.snapshot_keys()) == 4
    (summary,), _ = place.run(place.images.list(NS))
    assert summary.platforms == tuple(sorted((f"linux/{HOST}", "linux/s390x")))
    place.check_whole()
    place.run(place.images.delete(NS, NAME))
    assert place.is_empty()


def test_the_platforms_that_are_named_are_taken_and_no_other(place: Place) -> None:
    built = Layout()
    images = {arch: built.image([{"x": arch.encode()}], arch=arch) for arch in ("s390x", "ppc64le")}
    ours = built.image(LAYERS)
    built.list(built.index((ours, HOST), *((of, arch) for arch, of in images.items())), name=NAME)
    wanted = (platforms.parse("linux/s390x"),)
    place.take(built.archive(), ImportOptions(platforms=wanted, unpack=False))
    rows = place.content_rows()
    assert images["s390x"]["digest"] in rows
    assert not rows & {ours["digest"], images["ppc64le"]["digest"]}


@pytest.mark.parametrize("earlier", [{}, {"containerd.io/gc.ref.content.m.0": 1}])
def test_another_platform_is_added_and_takes_nothing_away(
    place: Place, earlier: dict[str, int]
) -> None:
    """`earlier`: labels that the first release gave an index, by place among what it had chosen."""
    built = Layout()
    images = [built.image([{"x": arch.encode()}], arch=arch) for arch in ("s390x", "ppc64le")]
    index = built.index((images[0], "s390x"), (images[1], "ppc64le"))
    built.list(index, name=NAME)
    for number, arch in reversed(list(enumerate(("s390x", "ppc64le")))):
        wanted = (platforms.parse(f"linux/{arch}"),)
        place.take(built.archive(), ImportOptions(platforms=wanted))
        if number and earlier:
            labels = {label: images[at]["digest"] for label, at in earlier.items()}
            gone = {f"containerd.io/gc.ref.content.m.{at}": "" for at in (0, 1)}
            place.content.label(NS, index["digest"], gone | labels)
    before = place.snapshot_keys()
    assert len(before) == 2
    place.run(place.images.collector.collect(NS))
    assert place.content_rows() == set(built.blobs)
    assert place.snapshot_keys() == before
    place.check_whole()


def test_an_index_may_lack_other_platforms(place: Place) -> None:
    built = Layout()
    ours = built.image(LAYERS)
    before = set(built.blobs)
    theirs = built.image([{"x": b"other"}], arch="s390x")
    gone = set(built.blobs) - before
    built.list(built.index((ours, HOST), (theirs, "s390x")), name=NAME)
    for digest in gone:
        del built.blobs[digest]
    assert place.take(built.archive()) == [NAME]
    with pytest.raises(NotFound, match=theirs["digest"]):
        place.take(built.archive(), ImportOptions(all_platforms=True))


def test_an_image_for_another_machine_says_which(place: Place) -> None:
    with pytest.raises(NotFound, match=f"no manifest for linux/{HOST}, only for linux/s390x"):
        place.take(layout(arch="s390x").archive())


def test_an_image_without_layers_has_no_snapshot(place: Place) -> None:
    place.take(layout(layers=()).archive())
    assert place.run(place.images.config(NS, NAME)).chain_id == ""
    assert place.run(place.images.unpack(NS, NAME)) == ""
    assert place.snapshot_keys() == set()


def test_a_failed_import_changes_no_name(place: Place) -> None:
    place.take(layout().archive())
    before = place.images.find(NS, NAME)
    broken = layout(layers=({"new": b"x"},))
    digest = next(iter(broken.blobs))
    broken.blobs[digest] = b"other bytes"
    with pytest.raises(LighterError):
        place.take(broken.archive())
    assert place.images.find(NS, NAME) == before
    place.check_whole()


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"x": b"no image"},
        {"index.json": b"{"},
        {"index.json": b"[]"},
        {"index.json": b'{"schemaVersion":2}'},
        {"index.json": b'{"schemaVersion":2,"manifests":[],"manifests":[]}'},
        {"index.json": b'{"schemaVersion":2,"manifests":[],"layers":[]}'},
        {"index.json": b"[" * 100_000},
        {"manifest.json": b"{}"},
        {"manifest.json": b"[]"},
        {"manifest.json": b"[null]"},
        {"manifest.json": b'[{"Config":7}]'},
        {"manifest.json": b'[{"Config":"x","Layers":"abc"}]'},
        {"manifest.json": b'[{"Config":"../../etc/passwd"}]'},
    ],
)
def test_sec_15_and_22_damaged_archives_are_typed_errors(
    place: Place, files: dict[str, bytes]
) -> None:
    with pytest.raises((InvalidArgument, NotFound)):
        place.take(tar(files))
    assert place.is_empty()


def test_sec_15_a_huge_document_is_refused_quickly(place: Place) -> None:
    begun = time.monotonic()
    with pytest.raises((InvalidArgument, ResourceExhausted)):
        place.take(tar({"index.json": bytes(21 << 20)}))
    with pytest.raises((InvalidArgument, ResourceExhausted)):
        place.take(tar({"index.json": b" " * (9 << 20)}))
    assert time.monotonic() - begun < 20
    assert place.is_empty()


def test_sec_20_a_digest_in_two_roles_is_refused(place: Place) -> None:
    built = Layout()
    image = built.image(LAYERS)
    inner = {**image, "mediaType": INDEX}
    built.list(built.index((image, HOST), (inner, HOST)), name=NAME)
    with pytest.raises(InvalidArgument, match="ambiguous"):
        place.take(built.archive())
    assert place.is_empty()


def test_sec_16_a_wrong_middle_layer_is_no_success(place: Place) -> None:
    tars = [tar(files) for files in LAYERS]
    wrong = [sha256(tars[0]), sha256(b"other"), sha256(tars[2])]
    with pytest.raises(DataLoss):
        place.take(layout(diff_ids=wrong).archive())
    assert place.snapshot_keys() == {wrong[0]}
    labels = [row["labels"] for row in place.db.rows("SELECT labels FROM content")]
    assert not any("gc.ref.snapshot" in text for text in labels)
    place.check_whole()
    with pytest.raises(DataLoss):
        place.run(place.images.unpack(NS, NAME))


def test_sec_16_the_label_says_unpacked_and_a_lost_snapshot_is_made_again(place: Place) -> None:
    place.take(layout().archive())
    top = place.run(place.images.config(NS, NAME)).chain_id
    rows = place.db.rows("SELECT labels FROM content WHERE labels LIKE '%gc.ref.snapshot%'")
    assert [f'"containerd.io/gc.ref.snapshot.overlayfs": "{top}"' in r["labels"] for r in rows] == [
        True
    ]
    place.run(place.overlay.remove(NS, top))
    assert contents(place) == FILES


def test_callers_share_the_work_on_a_layer(place: Place) -> None:
    place.take(layout().archive(), ImportOptions(unpack=False))
    place.worker.jobs.clear()

    async def together() -> list[str]:
        return await asyncio.gather(*(place.images.unpack(NS, NAME) for _ in range(5)))

    tops = place.run(together())
    assert len(set(tops)) == 1
    assert [job["job"] for job in place.worker.jobs].count("apply") == 3


def test_f_69_a_cancelled_unpack_leaves_others_alone(place: Place) -> None:
    place.take(layout().archive(), ImportOptions(unpack=False))

    async def steps() -> Any:
        started = asyncio.Event()
        place.worker.before = lambda job: started.set() if job["job"] == "apply" else None
        first = asyncio.ensure_future(place.images.unpack(NS, NAME))
        second = asyncio.ensure_future(place.images.unpack(NS, NAME))
        await started.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    top = place.run(steps())
    assert place.run(place.images.config(NS, NAME)).chain_id == top
    assert contents(place) == FILES
    place.check_whole()


def test_a_worker_that_dies_is_an_error_and_a_retry_completes(place: Place) -> None:
    place.take(layout().archive(), ImportOptions(unpack=False))
    died: list[str] = []

    def die_once(job: dict[str, Any]) -> None:
        if job["job"] == "apply" and not died:
            died.append(job["target"])
            raise DataLoss("run job: the worker was killed")

    place.worker.before = die_once
    with pytest.raises(DataLoss, match="was killed"):
        place.run(place.images.unpack(NS, NAME))
    assert not os.path.exists(died[0])
    assert contents(place) == FILES
    place.check_whole()


POINTS = [
    "import.ingest-open",
    "import.blobs-written",
    "content.noted",
    "import.blob-renamed",
    "import.adopted",
    "import.named",
    "snapshot.directory-made",
    "snapshot.recorded",
    "unpack.prepared",
    "unpack.applied",
    "unpack.committed",
    "unpack.labelled",
    "gc.rows-deleted",
    "gc.files-removed",
    "snapshot.removed",
]
_MODULES = ("images.importer", "images.unpack", "content.store", "content.gc")


@pytest.mark.parametrize("point", POINTS)
def test_f_23_to_35_a_manager_killed_at_each_point_recovers(
    place: Place, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = layout().archive()
    place.db.close()
    pid = os.fork()
    if pid == 0:
        try:
            plan = faults.Faults({"FAULT": f"{point}:abort"})
            for module in (*_MODULES, "snapshots.directories"):
                monkeypatch.setattr(f"lighter.daemon.{module}.hit", plan.hit)
            place.open()
            place.take(archive)
            place.run(place.images.delete(NS, NAME))
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    place.open()
    place.reopen()
    place.check_whole()
    if place.names():  # it stands for all that it promises
        assert contents(place) == FILES
    else:
        assert place.is_empty()
    assert place.take(archive) == [NAME]
    assert contents(place) == FILES
    place.check_whole()
    place.run(place.images.delete(NS, NAME))
    assert place.is_empty()


def killed_in_unpack(place: Place, before: Callable[[dict[str, Any]], None], plan: str) -> None:
    """Another manager begins to unpack and is killed; the next one is there, not yet recovered."""
    place.take(layout().archive(), ImportOptions(unpack=False))
    place.db.close()
    place.runner.close()  # its threads would not be in the child
    place.runner = asyncio.Runner()
    pid = os.fork()
    if pid == 0:
        try:
            faults._faults.plan = faults.Faults({"FAULT": plan}).plan
            place.worker.before = before
            place.open()
            place.run(place.images.unpack(NS, NAME))
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    place.open()


def test_f30_a_half_written_layer_is_begun_anew_elsewhere(place: Place) -> None:
    def die(job: dict[str, Any]) -> None:
        if job["job"] == "apply":
            Path(job["target"], "c").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in_unpack(place, die, "")
    half_written = place.snapshot_keys()
    assert half_written
    assert contents(place) == FILES
    assert half_written < place.snapshot_keys()  # until they are removed
    place.reopen()
    place.check_whole()
    assert contents(place) == FILES


def test_f32_committed_layers_are_found_by_their_chain_and_marked(place: Place) -> None:
    killed_in_unpack(place, lambda job: None, "unpack.committed:abort:3")
    top = place.run(place.images.config(NS, NAME)).chain_id
    assert top in place.snapshot_keys()
    place.worker.jobs.clear()
    assert place.run(place.images.unpack(NS, NAME)) == top
    assert place.worker.jobs == []
    place.reopen()  # what is not marked would be collected
    assert top in place.snapshot_keys()
    place.check_whole()
    assert contents(place) == FILES


def test_recovery_leaves_the_work_of_this_manager_alone(place: Place) -> None:
    place.take(layout().archive(), ImportOptions(unpack=False))
    Path(place.content.new_ingest().file("left behind")).touch()
    place.db.close()
    place.open()
    archive = place.root / "second"
    archive.write_bytes(layout(name="second").archive())

    async def steps() -> None:
        seen: list[str] = []
        recovered = asyncio.Event()

        def note(job: dict[str, Any]) -> None:
            if job["job"] in ("import", "apply"):
                seen.append(job["job"])

        async def recover_often() -> None:
            while not recovered.is_set():
                await place.images.recover()
                await asyncio.sleep(0)

        place.worker.before = note
        fd = os.open(archive, os.O_RDONLY)
        background = asyncio.ensure_future(recover_often())
        try:
            await place.images.import_archive(NS, fd)
        finally:
            os.close(fd)
            recovered.set()
            await background
        assert seen == ["import", "apply", "apply", "apply"]

    place.run(steps())
    assert contents(place, name="second") == FILES
    place.check_whole()


def test_a_listed_image_with_missing_content_says_so_and_can_go(place: Place) -> None:
    place.take(layout().archive())
    place.run(place.content.delete(NS, place.images.find(NS, NAME).target.digest))
    (summary,), _ = place.run(place.images.list(NS))
    assert "is missing" in summary.problem
    place.run(place.images.delete(NS, NAME))
    assert place.is_empty()


def test_names_are_found_as_given_and_in_full(place: Place) -> None:
    place.take(layout().archive())
    assert place.images.find(NS, "test:1").name == NAME
    place.images.tag(NS, "test:1", "short")
    assert place.images.find(NS, "short").name == "short"
    place.run(place.images.delete(NS, "test:1"))
    assert contents(place, name="short") == FILES
    with pytest.raises(NotFound, match="namespace default has it"):
        place.images.find("other", "short")


def test_namespaces_unpack_and_delete_apart(place: Place) -> None:
    archive = layout().archive()
    place.take(archive)
    place.take(archive, namespace="other")
    place.run(place.images.delete("other", NAME))
    assert contents(place) == FILES
    place.check_whole()


def test_a_pipe_is_an_archive_too(place: Place) -> None:
    path = place.root / "archive"
    path.write_bytes(layout().archive())
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        images = place.run(place.images.import_archive(NS, cat.stdout.fileno()))
    assert [image.name for image in images] == [NAME]


def test_an_unknown_snapshotter_is_refused_before_work(place: Place) -> None:
    with pytest.raises(NotFound, match="find snapshotter zfs: there are native, overlayfs"):
        place.take(layout().archive(), ImportOptions(snapshotter="zfs"))
    assert place.is_empty()


def test_labels_that_lead_to_content_are_containerds(place: Place) -> None:
    built = layout()
    place.take(built.archive())
    manifest = place.images.find(NS, NAME).target.digest
    labels = place.content.info(NS, manifest).labels
    assert sorted(labels) == [
        "containerd.io/gc.ref.content.config",
        *(f"containerd.io/gc.ref.content.l.{number}" for number in range(3)),
    ]
    assert set(labels.values()) | {manifest} == set(built.blobs)


def test_index_json_may_not_be_a_link(place: Place) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("index.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(InvalidArgument, match=r"index.json"):
        place.take(out.getvalue())
    assert place.is_empty()


def test_the_file_of_an_archive_is_not_changed(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    data = layout().archive()
    path.write_bytes(data)
    os.chmod(path, 0o400)
    place.take(path)
    assert path.read_bytes() == data
