"""Pull and push through the real ctl and manager, from and to registries on loopback."""

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests import images
from tests.harness import Lighterd, await_that
from tests.registries import (
    OCI_INDEX,
    OCI_LAYER,
    PASSWORD,
    USER,
    Authority,
    DebianRegistry,
    Reply,
    Request,
    Scripted,
    SmallImage,
    blob,
    describe,
    digest_of,
    error,
    small_image,
)
from tests.unit.images.build import Layout

MIB = 1 << 20
FAILURE, INTERRUPTED = 1, 130
SOURCE = "containerd.io/distribution.source"
FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@pytest.fixture(scope="module")
def image() -> SmallImage:
    return small_image(3 * MIB, 2 * MIB, MIB)


@pytest.fixture
def registry(image: SmallImage) -> Iterator[Scripted]:
    with Scripted() as registry:
        registry.serve(image, "app", "1")
        yield registry


def bodies(registry: Scripted, digest: str) -> int:
    """How many times the blob was asked for."""
    return len(registry.asked("GET", f"/blobs/{digest}"))


def refused(lighterd: Lighterd, *args: str) -> str:
    """`ctl args` fails in one line, which is returned."""
    done = lighterd.ctl(*args)
    text = done.stderr.decode()
    assert done.returncode == FAILURE, text
    assert text.startswith("ctl: ") and text.count("\n") == 1 and "Traceback" not in text, text
    return text


def nothing_is_there(lighterd: Lighterd) -> None:
    """No name, and soon nothing that a failed pull had to take back."""
    assert lighterd.ctl("images", "ls", "-q").stdout == b""

    def is_empty() -> bool:
        try:
            return not any(
                any(path.iterdir()) for path in (lighterd.root / "snapshots").glob("*/*/fs")
            )
        except FileNotFoundError:  # it goes just now
            return False

    await_that(is_empty, 20, "what was unpacked is taken back")


def test_a_pulled_image_runs_and_is_pushed_elsewhere(
    lighterd: Lighterd, tmp_path: Path, busybox: str
) -> None:
    """With Debian's registry, and skopeo as a second opinion about what was pushed."""
    with DebianRegistry(tmp_path / "registry") as registry:
        pushed = f"{registry.host}/library/busybox:1"
        done = lighterd.ctl("images", "push", "--plain-http", pushed, busybox)
        assert done.returncode == 0, done.stderr
        looked = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", f"docker://{pushed}"],
            capture_output=True,
            check=True,
        )
        assert json.loads(looked.stdout)["Os"] == "linux"
        assert lighterd.ctl("images", "rm", busybox).returncode == 0
        nothing_is_there(lighterd)
        done = lighterd.ctl("images", "pull", "--plain-http", pushed)
        assert done.returncode == 0, done.stderr
        assert f"{pushed}: done sha256:" in done.stdout.decode()
        done = lighterd.ctl("run", "--rm", pushed, "box", "echo", "from a registry")
        assert done.stdout == b"from a registry\n", done.stderr
        # The blobs are known to be in the other repository: nothing is sent twice.
        copy = f"{registry.host}/library/copy:2"
        done = lighterd.ctl("--format", "json", "images", "push", "--plain-http", copy, pushed)
        assert done.returncode == 0, done.stderr
        items = [json.loads(line) for line in done.stdout.splitlines()]
        assert not [item for item in items if item.get("status") == "uploading"]
        assert {i["kind"] for i in items if i.get("status") == "exists"} == {"config", "layer"}
        content = json.loads(lighterd.ctl("--format", "json", "content", "ls", check=True).stdout)
        told = [item["labels"] for item in content if SOURCE in str(item["labels"])]
        assert told, content
        for labels in told:  # as containerd, which leaves out the port
            assert labels[f"{SOURCE}.127.0.0.1"] == "library/busybox,library/copy"
            assert f"{SOURCE}.{registry.host}" not in labels


def test_credentials_are_asked_for_and_a_wrong_password_names_the_host(
    lighterd: Lighterd, tmp_path: Path, busybox: str
) -> None:
    with DebianRegistry(tmp_path / "registry", htpasswd=True) as registry:
        name = f"{registry.host}/library/busybox:1"
        push = ("images", "push", "--plain-http")
        assert registry.host in refused(lighterd, *push, name, busybox)
        text = refused(lighterd, *push, "-u", f"{USER}:wrong-{PASSWORD}", name, busybox)
        assert registry.host in text and PASSWORD not in text
        done = lighterd.ctl(*push, "-u", f"{USER}:{PASSWORD}", name, busybox)
        assert done.returncode == 0, done.stderr
        done = lighterd.ctl("images", "pull", "--plain-http", "-u", f"{USER}:{PASSWORD}", name)
        assert done.returncode == 0, done.stderr
    # SEC-31: neither in the log (level debug) nor in the database.
    assert PASSWORD.encode() not in lighterd.log.read_bytes()
    for path in lighterd.root.glob("lighter.db*"):
        assert PASSWORD.encode() not in path.read_bytes()


def test_run_pulls_what_is_missing_and_only_that(lighterd: Lighterd, tmp_path: Path) -> None:
    with DebianRegistry(tmp_path / "registry") as registry:
        name = f"{registry.host}/busybox:1"
        source = f"oci-archive:{images.busybox_archive()}"
        target = f"docker://{name}"
        argv = ["skopeo", "copy", "-q", "--dest-tls-verify=false", source, target]
        subprocess.run(argv, check=True, capture_output=True)
        done = lighterd.ctl("run", "--rm", "--pull", "never", name, "box", "true")
        assert done.returncode == 125 and b"there is no such image" in done.stderr
        done = lighterd.ctl("run", "--rm", name, "box", "echo", "pulled")
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"pulled\n"
        assert b"is not here: pulling it" in done.stderr
        done = lighterd.ctl("run", "--rm", name, "box", "echo", "again")
        assert done.stdout == b"again\n" and done.stderr == b""
        done = lighterd.ctl("run", "--rm", "--pull", "always", name, "box", "true")
        assert done.returncode == 0 and b"resolved" in done.stderr


def test_progress_as_json(lighterd: Lighterd, registry: Scripted, image: SmallImage) -> None:
    done = lighterd.ctl("--format", "json", "images", "pull", f"{registry.host}/app:1")
    assert done.returncode == 0, done.stderr
    *items, result = [json.loads(line) for line in done.stdout.splitlines()]
    assert result["image"] == f"{registry.host}/app:1"
    assert result["digest"] == image.descriptor.digest
    sizes = sum(len(data) for data in image.blobs.values())
    assert result["downloaded_bytes"] == sizes
    assert 0 < result["download_s"] < 60 and 0 < result["unpack_s"] < 60
    assert items[0]["status"] == "resolving"
    over = {item["digest"]: item for item in items if item["kind"] and item["status"] == "done"}
    assert over.keys() == {*image.blobs, image.descriptor.digest}
    assert all(item["done_bytes"] == item["total_bytes"] for item in over.values())


def test_a_pull_tells_the_name_of_the_topmost_snapshot(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    name = f"{registry.host}/app:1"
    flags = ("--print-chainid", "--all-metadata", "--local")
    said = lighterd.ctl("images", "pull", *flags, name, check=True).stdout.decode()
    label, _, chain_id = said.splitlines()[-1].rpartition(" ")
    assert label == "image chain ID:"
    lighterd.ctl("snapshots", "info", chain_id, check=True)
    usage = json.loads(lighterd.ctl("--format", "json", "images", "usage", name, check=True).stdout)
    assert usage[0]["key"] == chain_id and len(usage) == len(image.layers)
    told = lighterd.ctl("--format", "json", "pull", "--print-chainid", name, check=True).stdout
    assert json.loads(told.splitlines()[-1]) == {"chain_id": chain_id}


def test_ctrl_c_keeps_what_has_arrived(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    """The next pull asks for the rest by Range, and for no finished blob."""
    name, (big, *others) = f"{registry.host}/app:1", image.layers
    data = image.blobs[big.digest]
    path = f"/v2/app/blobs/{big.digest}"
    registry.route(path, Reply(body=data, stop_at=2 * MIB + 5, end="silence"))
    process = subprocess.Popen(
        lighterd.ctl_argv("images", "pull", name), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def has_arrived() -> bool:
        # The rest of the bytes stands in the connection until a portion is full.
        with lighterd.client() as client:
            listed = client.call("images", "list", cursor="", limit=10)["images"]
        writes = list((lighterd.root / "content/writes").glob("*/data"))
        blobs = lighterd.root / "content/blobs/sha256"
        there = all((blobs / layer.digest[7:]).exists() for layer in others)
        return not listed and there and any(path.stat().st_size >= MIB for path in writes)

    await_that(has_arrived, 20, "a MiB has arrived")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == INTERRUPTED
    process.communicate()
    nothing_is_there(lighterd)
    registry.route(path, blob(data))
    done = lighterd.ctl("images", "pull", name)
    assert done.returncode == 0, done.stderr
    ranges = [
        item.headers["range"] for item in registry.asked("GET", path) if "range" in item.headers
    ]
    assert ranges[-1] == f"bytes={2 * MIB + 5}-"
    assert [bodies(registry, layer.digest) for layer in others] == [1, 1]


def test_a_pull_that_ends_takes_nothing_from_another_of_its_name(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    """The tag was moved meanwhile: what the first has brought is kept for its next try."""
    name, (big, *others) = f"{registry.host}/app:1", image.layers
    path = f"/v2/app/blobs/{big.digest}"
    registry.route(path, Reply(body=image.blobs[big.digest], stop_at=MIB, end="silence"))
    first = subprocess.Popen(
        lighterd.ctl_argv("images", "pull", name),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await_that(
        lambda: all(_is_content(lighterd, layer.digest) for layer in others), 20, "two are there"
    )
    registry.serve(small_image(MIB, seed=2), "app", "1")
    lighterd.ctl("images", "pull", name, check=True)
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == INTERRUPTED
    lighterd.ctl("system", "prune", check=True)
    registry.serve(image, "app", "1")
    registry.route(path, blob(image.blobs[big.digest]))
    lighterd.ctl("images", "pull", name, check=True)
    assert [bodies(registry, layer.digest) for layer in others] == [1, 1]


POINTS = (
    "pull.resolved",
    "pull.leased",
    "pull.documents",
    "ingest.opened",
    "ingest.written",
    "pull.received",
    "ingest.synced",
    "content.noted",
    "ingest.adopted",
    "pull.committed",
    "unpack.prepared",
    "unpack.applied",
    "unpack.committed",
    "unpack.labelled",
    "pull.named",
)


@pytest.mark.parametrize("point", POINTS)
def test_f23_to_f32_a_manager_killed_in_a_pull_goes_on_from_there(
    lighterd: Lighterd, registry: Scripted, image: SmallImage, point: str
) -> None:
    """No name before all is whole; nothing that was finished is done twice; the next pull ends."""
    name = f"{registry.host}/app:1"
    lighterd.restart(FAULT=f"{point}:abort")
    done = lighterd.ctl("images", "pull", name)
    assert done.returncode != 0
    assert lighterd.process is not None
    lighterd.process.wait(10)
    blobs = lighterd.root / "content/blobs/sha256"
    finished = {digest for digest in image.blobs if _is_content(lighterd, digest)}
    assert bool(finished) == (POINTS.index(point) >= POINTS.index("ingest.adopted"))
    unpacked = _committed(lighterd)
    assert bool(unpacked) == (POINTS.index(point) >= POINTS.index("unpack.committed"))
    lighterd.start()
    assert finished <= {digest for digest in image.blobs if _is_content(lighterd, digest)}
    listed = lighterd.ctl("images", "ls", "-q").stdout.decode()
    assert (listed == f"{name}\n") == (point == "pull.named")
    before = {digest: bodies(registry, digest) for digest in image.blobs}
    done = lighterd.ctl("images", "pull", name)
    assert done.returncode == 0, done.stderr
    for digest in finished:
        assert bodies(registry, digest) == before[digest], digest
    for digest, data in image.blobs.items():
        assert (blobs / digest[7:]).read_bytes() == data
    with lighterd.client() as client:
        assert client.call("images", "get", name=name)["image"]["name"] == name
    assert list((lighterd.root / "content/writes").glob("*/data")) == []
    assert unpacked <= _committed(lighterd)


def _committed(lighterd: Lighterd) -> set[tuple[int, str]]:
    """Committed snapshots, by number and name."""
    with sqlite3.connect(f"file:{lighterd.root}/lighter.db?mode=ro", uri=True) as db:
        return set(db.execute("SELECT number, key FROM snapshots WHERE kind = 'committed'"))


def _is_content(lighterd: Lighterd, digest: str) -> bool:
    with sqlite3.connect(f"file:{lighterd.root}/lighter.db?mode=ro", uri=True) as db:
        return (
            db.execute("SELECT 1 FROM content WHERE digest = ?", (digest,)).fetchone() is not None
        )


def test_f69_fifty_clients_pull_one_image_once(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    """By two tags of one digest."""
    registry.serve(image, "app", "2")
    argv = lighterd.ctl_argv("images", "pull", f"{registry.host}/app:")
    started = [
        subprocess.Popen(
            [*argv[:-1], argv[-1] + "12"[number % 2]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(50)
    ]
    for process in started:
        _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
    assert {bodies(registry, digest) for digest in image.blobs} == {1}


def test_f69_an_image_is_removed_and_all_is_collected_while_it_is_pulled(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    """A collection takes nothing that a pull is bringing."""
    name, big = f"{registry.host}/app:1", image.layers[0]
    data = image.blobs[big.digest]
    registry.route(f"/v2/app/blobs/{big.digest}", blob(data, pace=(len(data) // 20, 0.2)))
    for verbs in (("images", "rm", name), ("system", "prune")):
        process = subprocess.Popen(
            lighterd.ctl_argv("images", "pull", name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        times = 0
        while process.poll() is None:
            lighterd.ctl(*verbs)
            times += 1
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert times > 2, "it was there in the middle"
        if verbs == ("system", "prune"):
            assert lighterd.ctl("images", "check", "-q").stdout.decode() == f"{name}\n"
        lighterd.ctl("images", "rm", name)
        assert not [digest for digest in image.blobs if _is_content(lighterd, digest)]


def test_a_pull_that_fails_names_reference_digest_and_host_and_leaves_the_old_image(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    name = f"{registry.host}/app:1"
    assert lighterd.ctl("images", "pull", name).returncode == 0
    newer = small_image(MIB, seed=2)
    registry.serve(newer, "app", "1")
    (layer,) = newer.layers
    registry.route(f"/v2/app/blobs/{layer.digest}", error(404, "BLOB_UNKNOWN", "unknown blob"))
    text = refused(lighterd, "images", "pull", name)
    assert name in text and layer.digest in text and registry.host in text
    with lighterd.client() as client:
        listed = client.call("images", "list", cursor="", limit=10)["images"]
    assert [(item["name"], item["digest"]) for item in listed] == [(name, image.descriptor.digest)]


@pytest.fixture
def mirror(registry: Scripted, tmp_path: Path) -> Iterator[Scripted]:
    """Asked for blobs before `registry`, by the hosts.toml that `through(tmp_path)` names."""
    with Scripted() as mirror:
        directory = tmp_path / "certs.d" / registry.host
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(
            f'server = "{registry.url}"\n[host."{mirror.url}"]\ncapabilities = ["pull"]\n'
        )
        yield mirror


def through(tmp_path: Path) -> tuple[str, str]:
    return "--hosts-dir", str(tmp_path / "certs.d")


def wrong(data: bytes, *, slowly: bool = False) -> Callable[[Request], Reply]:
    """As many other bytes, which are no gzip."""
    return blob(data[::-1], pace=(len(data) // 8, 0.6) if slowly else None)


def excess(data: bytes) -> Reply:
    """The blob and one byte more, of a length that is not told."""
    return Reply(raw=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data + b"x")


@pytest.mark.parametrize("kind", ["half", "all", "slowly", "excess"])
def test_f64_f70_wrong_bytes_of_a_mirror_end_no_pull(
    lighterd: Lighterd,
    registry: Scripted,
    mirror: Scripted,
    tmp_path: Path,
    image: SmallImage,
    kind: str,
) -> None:
    """A wrong first half and the registry's rest; all of it; so slowly that the worker has failed
    long before the digest is known; more than there is. Each time the registry's are taken."""
    big = image.layers[0]
    data, path = image.blobs[big.digest], f"/v2/app/blobs/{big.digest}"
    half = blob(data[::-1], stop_at=len(data) // 2)
    mirror.route(
        path,
        {
            "half": [half, error(503)],
            "all": wrong(data),
            "slowly": wrong(data, slowly=True),
            "excess": excess(data),
        }[kind],
    )
    name = f"{registry.host}/app:1"
    done = lighterd.ctl("images", "pull", *through(tmp_path), name)
    assert done.returncode == 0, done.stderr
    assert mirror.asked("GET", path)
    last = registry.asked("GET", path)[-1]
    assert "range" not in last.headers, "it begins anew"
    assert lighterd.ctl("images", "check", "-q").stdout.decode() == f"{name}\n"


def test_another_platform_takes_nothing_from_the_first(
    lighterd: Lighterd, registry: Scripted
) -> None:
    """Pulled one after the other, or several at once: what is listed for each stays whole."""
    arches = ("amd64", "arm64", "s390x")
    made = [small_image(1000, seed=number, arch=arch) for number, arch in enumerate(arches)]
    registry.serve_index("multi", "1", *zip(made, arches, strict=True))
    name = f"{registry.host}/multi:1"

    def whole() -> set[str]:
        assert lighterd.ctl("system", "prune").returncode == 0
        here = set()
        for one, arch in zip(made, arches, strict=True):
            digests = {one.descriptor.digest, *one.blobs}
            found = {digest for digest in digests if _is_content(lighterd, digest)}
            assert found in (set(), digests), arch
            here |= {arch} if found else set()
        return here

    def pull(*flags: str) -> None:
        done = lighterd.ctl("images", "pull", *flags, name)
        assert done.returncode == 0, done.stderr

    pull("--platform", "linux/s390x", "--no-unpack")
    assert whole() == {"s390x"}
    pull("--platform", "linux/amd64")
    assert whole() == {"s390x", "amd64"}
    assert lighterd.ctl("images", "check", "-q").stdout.decode() == f"{name}\n"
    assert lighterd.ctl("images", "rm", name).returncode == 0
    assert whole() == set()
    pull("--platform", "linux/arm64", "--platform", "linux/amd64")
    assert whole() == {"arm64", "amd64"}
    pull("--all-platforms")
    assert whole() == set(arches)
    keys = len(list((lighterd.root / "snapshots/overlayfs").glob("*/fs")))
    assert keys == 3, "each is unpacked"


def test_sec_36_wrong_bytes_are_refused_and_the_next_pull_works(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    name, big = f"{registry.host}/app:1", image.layers[0]
    path = f"/v2/app/blobs/{big.digest}"
    registry.route(path, blob(bytes(big.size)))
    text = refused(lighterd, "images", "pull", name)
    assert big.digest in text and registry.host in text
    nothing_is_there(lighterd)
    registry.route(path, blob(image.blobs[big.digest]))
    assert lighterd.ctl("images", "pull", name).returncode == 0


def test_sec_33_a_name_is_written_only_as_it_was_asked_for(
    lighterd: Lighterd, registry: Scripted, busybox: str
) -> None:
    """Annotations of what is pulled name nothing here."""
    planted = small_image(MIB, seed=3)
    document = json.loads(planted.manifest)
    document["annotations"] = {
        "io.containerd.image.name": busybox,
        "org.opencontainers.image.ref.name": busybox,
    }
    evil = SmallImage(json.dumps(document).encode(), planted.blobs)
    registry.serve(evil, "evil", "1")
    with lighterd.client() as client:
        before = client.call("images", "get", name=busybox)
    assert lighterd.ctl("images", "pull", f"{registry.host}/evil:1").returncode == 0
    with lighterd.client() as client:
        assert client.call("images", "get", name=busybox) == before


@pytest.mark.parametrize("kind", [OCI_LAYER, FOREIGN_LAYER])
def test_sec_24_the_urls_of_a_layer_are_not_followed(
    lighterd: Lighterd, registry: Scripted, image: SmallImage, kind: str
) -> None:
    """Be it one that may be had from elsewhere: what the registry has not is missing."""
    document = json.loads(image.manifest)
    layer = document["layers"][0]
    data = image.blobs[layer["digest"]]
    with Scripted() as other:
        other.default = blob(data)
        layer |= {"mediaType": kind, "urls": [f"{other.url}/layer"]}
        registry.serve(SmallImage(json.dumps(document).encode(), image.blobs), "urls", "1")
        path = f"/v2/urls/blobs/{layer['digest']}"
        registry.route(path, error(404, "BLOB_UNKNOWN", "unknown blob"))
        text = refused(lighterd, "images", "pull", f"{registry.host}/urls:1")
        assert layer["digest"] in text and f"{registry.host}/urls:1" in text
        registry.route(path, blob(data))
        done = lighterd.ctl("images", "pull", f"{registry.host}/urls:1")
        assert done.returncode == 0, done.stderr
        assert other.requests == []


def test_what_a_worker_refuses_names_reference_and_layer(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    """The bytes are what the digest promises, and no layer."""
    document = json.loads(image.manifest)
    data = bytes(range(256)) * 100
    document["layers"][0] |= {"digest": digest_of(data), "size": len(data)}
    broken = SmallImage(json.dumps(document).encode(), {**image.blobs, digest_of(data): data})
    registry.serve(broken, "broken", "1")
    text = refused(lighterd, "images", "pull", f"{registry.host}/broken:1")
    assert text.startswith(f"ctl: pull {registry.host}/broken:1: unpack layer {digest_of(data)}: ")
    assert text.count("unpack layer") == 1
    text = refused(lighterd, "images", "pull", f"{registry.host}/app:none")
    assert text.count(f"{registry.host}/app:none") == 1


def test_sec_34_an_encrypted_layer_is_refused(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    document = json.loads(image.manifest)
    document["layers"][0]["mediaType"] += "+encrypted"
    registry.serve(SmallImage(json.dumps(document).encode(), image.blobs), "secret", "1")
    assert "encrypted" in refused(lighterd, "images", "pull", f"{registry.host}/secret:1")
    nothing_is_there(lighterd)


def index_of(children: Iterable[str], media_type: str = OCI_INDEX) -> bytes:
    """An index of documents that have 1000 bytes each, as it has itself at least."""
    entries = [{"mediaType": media_type, "digest": digest, "size": 1000} for digest in children]
    made = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return json.dumps(made).encode().ljust(1000)


def fan_out() -> list[bytes]:
    """Twelve indexes of 500 pieces each, none like another, and one of all of them."""
    inner = [
        index_of((f"sha256:{number:02}{child:062}" for child in range(500)), "application/x")
        for number in range(12)
    ]
    entries = [
        {"mediaType": OCI_INDEX, "digest": describe(OCI_INDEX, data).digest, "size": len(data)}
        for data in inner
    ]
    outer = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return [*inner, json.dumps(outer).encode()]


def tower() -> list[bytes]:
    """Twenty indexes, each in the next one, which has it five times."""
    made = [index_of(["sha256:" + "0" * 64])]
    for _ in range(20):
        made.append(index_of([describe(OCI_INDEX, made[-1]).digest] * 5))
    return made


@pytest.mark.parametrize(
    ("documents", "words"), [(fan_out(), "over 4096 pieces"), (tower(), "over 8 deep")]
)
def test_sec_21_a_huge_graph_is_given_up_early(
    lighterd: Lighterd, registry: Scripted, documents: list[bytes], words: str
) -> None:
    """Whoever made it has us read no more than the budget, and what was read is not kept."""
    for data in documents:
        reply = Reply(body=data, headers=(("Content-Type", OCI_INDEX),))
        registry.route(f"/v2/app/manifests/{describe(OCI_INDEX, data).digest}", reply)
    registry.route("/v2/app/manifests/huge", reply)
    # An ordinary pull first, so that all that a pull needs is loaded.
    assert lighterd.ctl("images", "pull", f"{registry.host}/app:1").returncode == 0
    before, asked = peak_kib(lighterd.pid), len(registry.requests)
    text = refused(lighterd, "images", "pull", "--all-platforms", f"{registry.host}/app:huge")
    assert words in text, text
    assert len(registry.requests) - asked <= 14
    assert peak_kib(lighterd.pid) - before < 64 << 10
    assert lighterd.ctl("images", "ls", "-q").stdout.decode().split() == [f"{registry.host}/app:1"]


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_a_full_disk_fails_the_pull_and_the_next_one_goes_on(
    make_lighterd: Callable[..., Lighterd], registry: Scripted, image: SmallImage
) -> None:
    lighterd = make_lighterd()
    lighterd.root.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(lighterd.root)], check=True
    )
    try:
        lighterd.start()
        name = f"{registry.host}/app:1"
        filler = lighterd.root / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 5 * MIB)
        text = refused(lighterd, "images", "pull", "--no-unpack", name)
        # Whichever of the two asks for room first: a blob, or the database.
        assert "No space left" in text or "disk is full" in text
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(lighterd.root)], check=True)
        done = lighterd.ctl("images", "pull", name)
        assert done.returncode == 0, done.stderr
        assert lighterd.stop() == 0
    finally:
        if lighterd.process is not None and lighterd.process.poll() is None:
            lighterd.stop()
        subprocess.run(["umount", "-l", str(lighterd.root)], check=True)


def test_the_flags_of_a_registry_with_certificates(
    lighterd: Lighterd, tmp_path: Path, busybox: str
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = map(str, authority.issue("client"))
    server = authority.issue("server", "127.0.0.1")
    known, trusted = ("--tlscert", certificate, "--tlskey", key), ("--tlscacert", str(authority.ca))
    place = tmp_path / "registry"
    with DebianRegistry(place, tls=server, client_ca=authority.ca) as registry:
        name = f"{registry.host}/x:1"
        push = ("images", "push", name, busybox)
        assert "certificate" in refused(lighterd, *push, *known)
        refused(lighterd, *push, *trusted)  # who are you
        done = lighterd.ctl(*push, *known, *trusted)
        assert done.returncode == 0, done.stderr
        pull = ("images", "pull", "--label", "tier=web", "--max-concurrent-downloads", "1")
        assert "certificate" in refused(lighterd, *pull, *known, name)
        done = lighterd.ctl(*pull, *known, "--skip-verify", name)
        assert done.returncode == 0, done.stderr
    (row,) = [
        row
        for row in json.loads(lighterd.ctl("--format", "json", "images", "ls").stdout)
        if row["name"] == name
    ]
    assert row["labels"] == {"tier": "web"}


def test_an_index_is_pushed_whole_in_part_or_by_its_digest(
    lighterd: Lighterd, registry: Scripted, tmp_path: Path
) -> None:
    arches = ("amd64", "arm64")
    made = [small_image(1000, seed=number, arch=arch) for number, arch in enumerate(arches)]
    index = registry.serve_index("multi", "1", *zip(made, arches, strict=True))
    local = f"{registry.host}/multi:1"
    with DebianRegistry(tmp_path / "registry") as target:

        def push(tag: str, *flags: str) -> str:
            """The digest that the tag has at the registry then."""
            name = f"{target.host}/copy:{tag}"
            done = lighterd.ctl("images", "push", "--plain-http", *flags, name, local)
            assert done.returncode == 0, done.stderr
            argv = ("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}")
            return digest_of(subprocess.run(argv, capture_output=True, check=True).stdout)

        assert lighterd.ctl("images", "pull", local).returncode == 0
        text = refused(lighterd, "images", "push", f"{target.host}/copy:1", local)
        assert "not all of its platforms are here" in text
        assert push("amd64", "--platform", "linux/amd64") == made[0].descriptor.digest
        assert lighterd.ctl("images", "pull", "--all-platforms", local).returncode == 0
        assert push("all") == index.digest
        assert push("one", "--manifest", made[1].descriptor.digest) == made[1].descriptor.digest
        text = refused(lighterd, "images", "push", "--manifest", f"sha256:{'0' * 64}", local)
        assert "has no document" in text


@pytest.mark.parametrize("point", ["push.blob", "push.document"])
def test_f36_a_push_that_a_kill_ended_is_repeated(
    lighterd: Lighterd, tmp_path: Path, busybox: str, point: str
) -> None:
    """No tag before all is there; what is there is not sent again."""
    with DebianRegistry(tmp_path / "registry") as registry:
        name = f"{registry.host}/x:1"
        push = ("images", "push", "--plain-http", name, busybox)
        lighterd.restart(FAULT=f"{point}:abort")
        assert lighterd.ctl(*push).returncode != 0
        assert lighterd.process is not None
        lighterd.process.wait(10)
        lighterd.restart()
        pulled = lighterd.ctl("images", "pull", "--plain-http", name)
        assert (pulled.returncode == 0) == (point == "push.document")
        done = lighterd.ctl("--format", "json", *push)
        assert done.returncode == 0, done.stderr
        items = [json.loads(line) for line in done.stdout.splitlines()]
        assert "exists" in {item.get("status") for item in items}
        assert lighterd.ctl("images", "pull", "--plain-http", name).returncode == 0


def test_sec_18_containers_of_an_image_without_layers_have_a_fresh_root_each(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    built = Layout()
    built.list(built.image([]), name="docker.io/library/empty:1")
    archive = tmp_path / "empty.tar"
    archive.write_bytes(built.archive())
    assert lighterd.ctl("images", "import", str(archive)).returncode == 0
    done = lighterd.ctl("run", "--rm", "empty:1", "c0", "/bin/true")
    assert done.returncode == 127 and b"/bin/true" in done.stderr, done.stderr
    for name in ("c1", "c2"):
        done = lighterd.ctl("containers", "create", "empty:1", name, "/bin/true")
        assert done.returncode == 0, done.stderr
    roots = list((lighterd.root / "snapshots/overlayfs").glob("*/fs"))
    assert len(roots) == 2 and not [path for root in roots for path in root.iterdir()]
    assert {root.parent.stat().st_mode & 0o777 for root in roots} == {0o700}
    for name in ("c1", "c2"):
        assert lighterd.ctl("containers", "rm", name).returncode == 0


def test_wrong_words(lighterd: Lighterd, registry: Scripted) -> None:
    assert "is no part of one" in refused(lighterd, "images", "pull", f"{registry.host}/UPPER")
    assert registry.host in refused(lighterd, "images", "pull", f"{registry.host}/none:1")
    text = refused(lighterd, "images", "push", f"{registry.host}/x:1", "nothing-of-that-name")
    assert "there is no such image" in text
    text = refused(lighterd, "images", "pull", "--snapshotter", "zfs", f"{registry.host}/app:1")
    assert "zfs" in text
    text = refused(
        lighterd, "images", "pull", "--platform", "linux/s390x", f"{registry.host}/app:1"
    )
    assert "s390x" in text
    done = lighterd.ctl("images", "pull", "--platform", "x/y", "--all-platforms", "x")
    assert done.returncode == 2
