"""Debian's ctr on both daemons, word by word: images, content, snapshots, leases, namespaces.

What it prints is compared as it is, but for what no two runs have in common: times, rates, the
order of labels (a Go map's), the daemons' own directories, and bars of progress.
"""

import hashlib
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lighter.daemon.grpc.pb import leases_pb2
from tests import images
from tests.containerd import Containerd
from tests.grpc.client import Api
from tests.grpc.conftest import run_ctr
from tests.harness import Lighterd
from tests.registries import PASSWORD, USER, DebianRegistry

ABSENT = f"sha256:{0:064}"
BUSYBOX = images.REFERENCE
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[0-9.]*(Z|[+-]\d\d:\d\d)"), "TIME"),
    (re.compile(r"done: [0-9.]+m?s"), "done: TIME"),
    (re.compile(r"Less than a second|\d+ seconds?|About a minute"), "AGE"),
    (re.compile(r"/\S+?/snapshots/(overlayfs/)?\d+/"), "SNAPSHOT/"),
    (re.compile(r"space-[0-9a-f]+/\d+/"), ""),  # containerd names a snapshot by its own number
    (re.compile(r"[ \t]+"), " "),
)
# ctr asks for its bars' sake beside the pull, and says so when that ends first.
_PROGRESS = re.compile(
    r"\x1b|elapsed:|: +(waiting|resolving|resolved|done|downloading|exists) +\||context canceled"
)


class Both:
    """The two daemons, and a namespace that each test has for itself."""

    def __init__(self, lighterd: Lighterd, containerd: Containerd, folder: Path) -> None:
        self.addresses = (containerd.address, lighterd.grpc_address)
        self.namespace = f"space-{secrets.token_hex(4)}"
        self.lighterd = lighterd
        self.folder = folder  # with one subfolder each, ./0 and ./1

    def ctr(
        self, *words: str, data: bytes | None = None, code: int | None = 0, ordered: bool = True
    ) -> str:
        """Run it on both; returns what ours said, which is what containerd's said.

        `code` is the end that is expected, None for any that is the same. HERE in a word is a
        folder of each daemon's own.
        """
        said = []
        for number, address in enumerate(self.addresses):
            here = str(self.folder / str(number))
            given = [word.replace("HERE", here) for word in words]
            done = run_ctr(address, "-n", self.namespace, *given, data=data)
            text = f"{_plain(done.stdout)}\n--- {_plain(done.stderr)}".replace(here, "HERE")
            lines = text.splitlines() if ordered else sorted(text.splitlines())
            said.append((done.returncode, lines))
        assert said[1] == said[0], f"ctr {' '.join(words)}"
        assert code in (None, said[1][0]), said[1]
        return "\n".join(said[1][1])

    def keep(self, id_: str, kind: str = "content") -> None:
        """ctr's ingests and views have no lease: without one a collection, say for what the test
        before has removed, may take what is made.
        """
        for address in self.addresses:
            with Api(address, self.namespace) as api:
                api.call(leases_pb2, "Leases", "Create", id="keep")
                held = leases_pb2.Resource(id=id_, type=kind)
                api.call(leases_pb2, "Leases", "AddResource", id="keep", resource=held)


def _plain(output: bytes) -> str:
    lines = []
    for line in output.decode(errors="replace").splitlines():
        if _PROGRESS.search(line):
            continue
        for pattern, stands_for in _VARYING:
            line = pattern.sub(stands_for, line)
        words = line.strip().split(" ")
        lines.append(" ".join(_sorted_labels(word) if "=" in word else word for word in words))
    return "\n".join(line for line in lines if line)


def _sorted_labels(word: str) -> str:
    return ",".join(sorted(word.split(",")))


@pytest.fixture
def both(shared_lighterd: Lighterd, containerd: Containerd) -> Iterator[Both]:
    folder = Path(tempfile.mkdtemp(prefix="lighter-", dir="/var/tmp"))
    for number in (0, 1):
        (folder / str(number)).mkdir()
    made = Both(shared_lighterd, containerd, folder)
    yield made
    for address in made.addresses:
        _empty(address, made.namespace)
    shutil.rmtree(folder)


def _empty(address: str, namespace: str) -> None:
    def words(*argv: str) -> list[str]:
        return run_ctr(address, "-n", namespace, *argv).stdout.decode().split("\n")

    if names := [name for name in words("images", "ls", "-q") if name]:
        words("images", "rm", "--sync", *names)
    for snapshotter in ("overlayfs", "native"):
        before: list[str] = []
        while (
            keys := [
                row.split()[0]
                for row in words("snapshots", "--snapshotter", snapshotter, "ls")[1:]
                if row
            ]
        ) and keys != before:  # else none of them can be removed, as the namespace will say
            words("snapshots", "--snapshotter", snapshotter, "rm", *keys)
            before = keys
    for lease in filter(None, words("leases", "ls", "-q")):
        words("leases", "rm", lease)
    if digests := [digest for digest in words("content", "ls", "-q") if digest]:
        words("content", "rm", *digests)
    done = run_ctr(address, "namespaces", "rm", namespace)
    assert done.returncode == 0 or b"not found" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def registry() -> Iterator[DebianRegistry]:
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/var/tmp") as folder:
        with DebianRegistry(Path(folder), htpasswd=True) as registry:
            yield registry


def archive() -> str:
    return str(images.busybox_archive())


def import_busybox(both: Both, *options: str) -> None:
    both.ctr("images", "import", *options, archive())


# --- chapter 3 of the tutorial


def test_the_life_of_an_image(both: Both) -> None:
    both.ctr("images", "ls")
    assert f"unpacking {BUSYBOX} (sha256:" in both.ctr("images", "import", archive())
    listed = both.ctr("images", "ls")
    assert "linux/amd64" in listed or "linux/arm64" in listed
    assert both.ctr("images", "ls", "-q").startswith(BUSYBOX)
    assert "complete (2/2)" in both.ctr("images", "check")
    both.ctr("images", "check", f"name=={BUSYBOX}")
    both.ctr("images", "tag", BUSYBOX, "busybox:tagged")
    both.ctr("images", "tag", BUSYBOX, "busybox:tagged", code=1)
    both.ctr("images", "tag", "--force", BUSYBOX, "busybox:tagged")
    both.ctr("images", "tag", "nope", "x", code=1)
    both.ctr("images", "label", "busybox:tagged", "a=b", "c=d")
    both.ctr("images", "label", "busybox:tagged", "a=")
    both.ctr("images", "label", "--replace-all", "busybox:tagged", "e=f")
    both.ctr("images", "label", "nope", "a=b", code=1)
    assert "e=f" in both.ctr("images", "ls")
    both.ctr("images", "ls", f"name=={BUSYBOX}")
    both.ctr("images", "ls", "labels.e==f")
    both.ctr("images", "export", "HERE/image.tar", BUSYBOX, "busybox:tagged")
    both.ctr("images", "rm", "busybox:tagged")
    both.ctr("images", "rm", "nope")
    both.ctr("images", "rm", "--sync", BUSYBOX)
    both.ctr("images", "ls")
    assert "sha256" not in both.ctr("content", "ls")
    assert "sha256" not in both.ctr("snapshots", "ls")
    exported = [both.folder / str(number) / "image.tar" for number in (0, 1)]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    both.ctr("images", "import", "HERE/image.tar")
    both.ctr("images", "ls")
    both.ctr("images", "check")


def test_options_of_import_and_export(both: Both) -> None:
    both.ctr("images", "import", "--no-unpack", "--all-platforms", archive())
    assert "false" in both.ctr("images", "check")
    both.ctr("images", "import", "--digests", "--base-name", "example.com/x", archive())
    both.ctr("images", "import", "--index-name", "example.com/index:1", archive())
    both.ctr("images", "import", "--snapshotter", "native", archive())
    both.ctr("snapshots", "--snapshotter", "native", "ls")
    both.ctr("images", "import", "--snapshotter", "zz", archive(), code=1)
    both.ctr("images", "ls")
    both.ctr("images", "export", "--all-platforms", "--skip-manifest-json", "HERE/i.tar", BUSYBOX)
    both.ctr("images", "export", "--platform", "linux/s390x", "HERE/x.tar", BUSYBOX, code=None)
    both.ctr("images", "export", "HERE/x.tar", "nope", code=1)
    both.ctr("images", "import", "/etc/passwd", code=1)
    whole = [(both.folder / str(number) / "i.tar").read_bytes() for number in (0, 1)]
    assert hashlib.sha256(whole[0]).digest() == hashlib.sha256(whole[1]).digest()


def test_an_image_is_mounted_and_changed(both: Both) -> None:
    import_busybox(both)
    for number in (0, 1):
        (both.folder / str(number) / "m").mkdir()
    places = [both.folder / str(number) / "m" for number in (0, 1)]
    try:
        both.ctr("images", "mount", BUSYBOX, "HERE/m")
        both.ctr("snapshots", "ls")
        assert names_below(places[1]) == names_below(places[0]) != []
        both.ctr("images", "unmount", "--rm", "HERE/m")
        assert names_below(places[1]) == []
        both.ctr("images", "mount", "--rw", BUSYBOX, "HERE/m")
        for place in places:
            (place / "new").write_text("x")
            (place / "etc/passwd").unlink()
        top = both.ctr("snapshots", "ls").split("HERE/m ")[1].split()[0]
        layers = [
            run_ctr(address, "-n", both.namespace, "snapshots", "diff", str(place), top)
            for address, place in zip(both.addresses, places, strict=True)
        ]
        assert [done.returncode for done in layers] == [0, 0], layers
        both.ctr("images", "unmount", "HERE/m")
        both.ctr("snapshots", "ls")
        both.ctr("snapshots", "rm", "HERE/m")
        both.ctr("images", "mount", "nope", "HERE/m", code=1)
    finally:
        for place in places:
            subprocess.run(["umount", "-q", str(place)], check=False)


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_are_converted(both: Both) -> None:
    import_busybox(both)
    both.ctr("images", "convert", "--oci", BUSYBOX, "example.com/oci")
    both.ctr("images", "convert", "--uncompress", "--oci", BUSYBOX, "example.com/plain")
    both.ctr("images", "convert", "nope", "example.com/x", code=1)
    both.ctr("images", "ls")
    both.ctr("images", "check")


# --- chapter 5: registries


def test_pull_and_push(both: Both, registry: DebianRegistry) -> None:
    import_busybox(both)
    name = f"{registry.host}/library/busybox:test"
    login = ("--plain-http", "-u", f"{USER}:{PASSWORD}")
    both.ctr("images", "tag", BUSYBOX, name)
    both.ctr("images", "push", "--platform", "linux/amd64", "--plain-http", name, code=1)
    both.ctr("images", "push", *login, "--platform", "linux/amd64", name)
    both.ctr("images", "rm", "--sync", name, BUSYBOX)
    assert "sha256" not in both.ctr("content", "ls")
    both.ctr("images", "pull", "--plain-http", "-u", f"{USER}:wrong", name, code=1)
    assert "unpacking" in both.ctr("images", "pull", *login, "--platform", "linux/amd64", name)
    both.ctr("images", "pull", *login, "--all-platforms", name)  # it is there
    both.ctr("images", "pull", *login, f"{registry.host}/library/nope:test", code=1)
    listed = both.ctr("content", "ls")
    for label in ("distribution.source", "gc.ref.content.l.0", "gc.ref.snapshot", "uncompressed"):
        assert f"containerd.io/{label}" in listed
    both.ctr("snapshots", "ls")
    both.ctr("snapshots", "usage")
    both.ctr("images", "check")
    both.ctr("images", "ls")
    both.ctr("leases", "ls")  # its own went with the pull
    both.ctr("images", "rm", "--sync", name)
    both.ctr("content", "fetch", *login, name)
    both.ctr("images", "ls")
    assert "sha256" not in both.ctr("snapshots", "ls")
    target = both.ctr("images", "ls").split("sha256:")[1].split()[0]
    both.ctr("content", "fetch-object", *login, name, f"sha256:{target}")
    both.ctr("snapshots", "unpack", f"sha256:{target}")
    both.ctr("snapshots", "ls")


def test_ctl_goes_on_where_ctr_was_and_the_other_way_round(both: Both) -> None:
    lighterd, space = both.lighterd, both.namespace
    import_busybox(both)
    ran = lighterd.ctl("-n", space, "run", "--rm", BUSYBOX, "c1", "echo", "hello", check=True)
    assert ran.stdout == b"hello\n"
    with lighterd.client(space) as client:
        (snapshot,) = client.call("snapshots", "list", snapshotter="")["snapshots"]
        before = snapshot["created_at"]
    lighterd.ctl("-n", space, "images", "import", archive(), check=True)
    lighterd.ctl("-n", space, "snapshots", "unpack", BUSYBOX, check=True)
    with lighterd.client(space) as client:
        (snapshot,) = client.call("snapshots", "list", snapshotter="")["snapshots"]
        assert snapshot["created_at"] == before  # ctr's was found by its name
    listed = both.ctr("images", "check"), both.ctr("snapshots", "ls")
    lighterd.ctl("-n", space, "images", "rm", BUSYBOX, check=True)
    assert run_ctr(both.addresses[1], "-n", space, "content", "ls", "-q").stdout == b""
    lighterd.ctl("-n", space, "images", "import", archive(), check=True)
    assert (both.ctr("images", "check"), both.ctr("snapshots", "ls")) == listed


def test_many_bring_the_same_image_at_once(both: Both) -> None:
    lighterd = both.lighterd
    ctr = ["ctr", "--address", both.addresses[1]]
    argvs = [[*ctr, "-n", both.namespace, "images", "import", archive()]] * 3
    argvs += [lighterd.ctl_argv("-n", both.namespace, "images", "import", archive())] * 3

    def run(argv: list[str]) -> str:
        done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
        return "" if done.returncode == 0 else done.stderr.decode()

    with ThreadPoolExecutor(len(argvs)) as pool:
        assert list(pool.map(run, argvs)) == [""] * len(argvs)
    shown = run_ctr(both.addresses[1], "-n", both.namespace, "images", "check").stdout
    assert b"complete (2/2)" in shown and b"true" in shown
    with lighterd.client(both.namespace) as client:
        assert len(client.call("snapshots", "list", snapshotter="")["snapshots"]) == 1
        assert not client.call("leases", "list")["leases"]


# --- what the other verbs show


def test_content(both: Both) -> None:
    hi = b"hi\n"
    digest = f"sha256:{hashlib.sha256(hi).hexdigest()}"
    both.keep(digest)
    both.ctr("content", "ingest", "r1", data=hi)
    both.ctr("content", "ingest", "r1", data=hi, code=None)
    both.ctr("content", "ingest", "--expected-digest", ABSENT, "r2", data=hi, code=1)
    both.ctr("content", "ingest", "--expected-size", "5", "r3", data=hi, code=1)
    both.ctr("content", "active", ordered=False)
    assert "hi" in both.ctr("content", "get", digest)
    both.ctr("content", "label", digest, "a=b", "c=d")
    both.ctr("content", "label", digest, "a=")
    assert "c=d" in both.ctr("content", "ls")
    both.ctr("content", "ls", "-q", "labels.c==d")
    both.ctr("content", "ls", "labels.none")
    both.ctr("content", "prune", "references", "--dry")
    both.ctr("content", "edit", "--editor", "/bin/true", digest, code=1)  # it is there
    both.ctr("content", "edit", "--editor", "/bin/false", digest, code=1)
    both.ctr("content", "rm", digest)
    for words in (("get", ABSENT), ("label", ABSENT, "a=b"), ("get", "sha256:1")):
        both.ctr("content", *words, code=1)
    both.ctr("content", "rm", ABSENT, code=None)
    both.ctr("content", "ls")


def test_snapshots(both: Both) -> None:
    def snapshots(*words: str, code: int | None = 0) -> str:
        return both.ctr("snapshots", *words, code=code)

    snapshots("prepare", "a")
    snapshots("prepare", "a", code=1)
    snapshots("prepare", "b", "nope", code=1)
    snapshots("prepare", "b", "a", code=1)
    snapshots("prepare", "--target", "HERE/t", "m")
    snapshots("commit", "base", "a")
    snapshots("commit", "base", "m", code=1)
    snapshots("commit", "x", "nope", code=1)
    both.keep("v", "snapshots/overlayfs")
    snapshots("view", "v", "base")
    snapshots("prepare", "b", "base")
    assert "overlay" in snapshots("mounts", "/mnt", "b").replace("index=off,", "")
    snapshots("mounts", "/mnt", "v")
    snapshots("mounts", "/mnt", "base", code=1)
    snapshots("mounts", "/mnt", "nope", code=1)
    snapshots("info", "v")
    snapshots("info", "nope", code=1)
    snapshots("ls")
    both.ctr("snapshots", "tree")
    snapshots("label", "v", "x=y")
    snapshots("label", "nope", "x=y", code=1)
    snapshots("info", "v")
    snapshots("usage", "nope", code=1)
    snapshots("rm", "base", code=1)
    snapshots("rm", "nope", code=1)
    snapshots("rm", "v", "b", "m", "base")
    snapshots("ls")
    both.ctr("snapshots", "--snapshotter", "zz", "ls", code=1)


def test_leases(both: Both) -> None:
    both.ctr("leases", "create", "--id", "l1", "--expires", "0", "a=b")
    both.ctr("leases", "create", "--id", "l1", code=1)
    both.ctr("leases", "create", "--id", "l2")
    both.ctr("leases", "ls")
    both.ctr("leases", "ls", "-q", "id==l1")
    both.ctr("leases", "rm", "--sync", "l1")
    both.ctr("leases", "rm", "l1", code=None)
    both.ctr("leases", "rm", "l2")
    both.ctr("leases", "ls")


# --- chapter 6: namespaces


def test_namespaces(both: Both) -> None:
    name = both.namespace
    listed: Sequence[str] = ("namespaces", "ls")
    assert name not in both.ctr("namespaces", "rm", "nope", code=None)
    both.ctr("namespaces", "create", name, "a=b")
    both.ctr("namespaces", "create", name, code=1)
    both.ctr("namespaces", "create", "no/name", code=1)
    both.ctr("namespaces", "label", name, "a=", "c=d")
    for address in both.addresses:
        rows = run_ctr(address, *listed).stdout.decode().splitlines()
        assert f"{name} c=d" in [" ".join(row.split()) for row in rows]
    both.ctr("images", "ls")
    import_busybox(both)
    text = both.ctr("namespaces", "rm", name, code=1)
    assert 'must be empty, but it still has images, blobs, snapshots on "overlayfs"' in text
    both.ctr("images", "rm", "--sync", BUSYBOX)
    both.ctr("namespaces", "rm", name)
    for address in both.addresses:
        assert name not in run_ctr(address, *listed).stdout.decode()
