"""`lighterd migrate`: a real containerd's images become ours, and stay containerd's."""

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.daemon.grpc.pb import images_pb2
from lighter.daemon.migrate.containerd import BLOBS, DATABASE
from tests import images
from tests.containerd import Containerd
from tests.grpc.client import Api
from tests.harness import BIN, Lighterd
from tests.images import REFERENCE
from tests.unit.images.build import HOST, MANIFEST, Layout
from tests.unit.migrate.bolt_file import Tree, database

PAGE = Path(__file__).resolve().parents[2] / "docs/migrate-from-containerd.md"
SEVERAL = "example.com/several:1"


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> "Containerd":
    """One with busybox in two namespaces, and an index of which only this host's part is there."""
    archive = images.busybox_archive()
    with Containerd() as containerd:
        for namespace in ("default", "k8s.io"):
            containerd.ctr("-n", namespace, "images", "import", "--no-unpack", str(archive))
        containerd.ctr("-n", "k8s.io", "images", "label", REFERENCE, "app=web")
        layout = Layout()
        mine, other = layout.image([{"a": b"mine"}]), layout.image([{"a": b"other"}], "s390x")
        layout.list(layout.index((mine, HOST), (other, "s390x")), name=SEVERAL)
        path = tmp_path_factory.mktemp("several") / "image.tar"
        path.write_bytes(layout.archive())
        containerd.ctr("images", "import", "--no-unpack", "--all-platforms", str(path))
        containerd.ctr("content", "rm", other["digest"])
        # Its collector would come in its own time.
        containerd.ctr("leases", "create", "--id", "l")
        containerd.ctr("leases", "delete", "--sync", "l")
        yield containerd  # type: ignore[misc]


def root_of(containerd: Containerd) -> Path:
    return containerd.base / "r"


def tree(containerd: Containerd) -> dict[str, tuple[int, int, str]]:
    """Owner, mode and digest of every file of content."""
    return {
        path.name: (
            path.stat().st_uid,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in (root_of(containerd) / BLOBS).iterdir()
    }


@pytest.fixture
def ours(make_lighterd: Callable[..., Lighterd]) -> Lighterd:
    """An instance that does not run, on containerd's file system."""
    return make_lighterd(under="/var/tmp")


def migrate(
    ours: Lighterd, source: Path, *more: str, **environ: str
) -> "subprocess.CompletedProcess[str]":
    argv = [str(BIN / "lighterd"), "--root", str(ours.root), "--state", str(ours.state), "migrate"]
    return subprocess.run(
        [*argv, "--from", str(source), *more],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def words(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """What became of each image, by namespace and name."""
    lines = (done.stdout + done.stderr).splitlines()
    return {line.split(": ")[0].split(maxsplit=1)[1]: line.split()[0] for line in lines}


def test_images_come_by_links_and_run(containerd: Containerd, ours: Lighterd) -> None:
    """While containerd runs, which sees no change and goes on with them."""
    before = tree(containerd)
    told = migrate(ours, root_of(containerd), "--dry-run")
    assert set(words(told).values()) == {"taken"}, told.stderr
    assert not (ours.root / "lighter.db").exists()
    done = migrate(ours, root_of(containerd))
    assert done.returncode == 0, done.stderr
    assert words(done) == {
        f"default {REFERENCE}": "taken",
        f"default {SEVERAL}": "taken",
        f"k8s.io {REFERENCE}": "taken",
    }
    assert "copied" in done.stdout and ", 0 copied" in done.stdout
    assert tree(containerd) == before
    for digest in before:
        mine = ours.root / "content/blobs/sha256" / digest
        assert mine.stat().st_ino == (root_of(containerd) / BLOBS / digest).stat().st_ino
    ours.start()
    with ours.client() as client:  # what came is not taken for files of a database that is lost
        assert client.call("system", "health")["loss"] == ""
    ran = ours.ctl("run", "--rm", REFERENCE, "c", "echo", "hello", check=True)
    assert ran.stdout == b"hello\n"
    assert b"app=web" in ours.ctl("-n", "k8s.io", "images", "ls", check=True).stdout
    ours.ctl("system", "prune", check=True)  # what is named is kept
    assert b"is not" not in ours.ctl("images", "check", check=True).stdout
    ours.ctl("images", "rm", REFERENCE, SEVERAL, check=True)
    ours.ctl("-n", "k8s.io", "images", "rm", "--force", REFERENCE, check=True)
    ours.ctl("system", "prune", check=True)
    assert not list((ours.root / "content/blobs/sha256").iterdir())
    assert tree(containerd) == before
    assert containerd.ctr("images", "check", "-q").decode().split() == [REFERENCE, SEVERAL]


def test_a_dry_run_mends_nothing(containerd: Containerd, ours: Lighterd) -> None:
    """It looks at a copy: what is there stays, whatever is wrong with it."""
    assert migrate(ours, root_of(containerd)).returncode == 0
    database = ours.root / "lighter.db"
    whole = database.read_bytes()
    database.write_bytes(whole[: len(whole) // 2])
    before = {path: path.read_bytes() for path in ours.root.glob("lighter.db*")}
    migrate(ours, root_of(containerd), "--dry-run")
    assert {path: path.read_bytes() for path in ours.root.glob("lighter.db*")} == before
    database.write_bytes(whole)
    told = migrate(ours, root_of(containerd), "--dry-run")
    assert set(words(told).values()) == {"present"}, told.stderr


def test_it_is_broken_off_and_run_again(containerd: Containerd, ours: Lighterd) -> None:
    source = root_of(containerd)
    for point in ("migrate.linked", "content.noted", "import.blob-renamed", "migrate.adopted"):
        broken = migrate(ours, source, "-n", "default", FAULT=f"{point}:abort")
        assert broken.returncode == -9, (point, broken.stderr)
    assert set(words(migrate(ours, source)).values()) == {"taken"}
    again = migrate(ours, source)
    assert (set(words(again).values()), again.returncode) == ({"present"}, 0)
    ours.start()
    assert ours.ctl("run", "--rm", REFERENCE, "c", "echo", "hello").stdout == b"hello\n"


def test_what_cannot_be_taken_is_told(containerd: Containerd, ours: Lighterd) -> None:
    """And takes nothing else with it: another image of that name, damage, no root, a manager."""
    source = ours.base / "copy"
    subprocess.run(["cp", "-a", str(root_of(containerd)), str(source)], check=True)
    layout = Layout()
    layout.list(layout.image([{"a": b"of ours"}]), name=SEVERAL)
    (ours.base / "image.tar").write_bytes(layout.archive())
    ours.start()
    ours.ctl("images", "import", str(ours.base / "image.tar"), check=True)
    kept = ours.ctl("images", "ls", check=True).stdout
    serving = migrate(ours, source)
    assert serving.returncode == 1
    assert "stop the manager first" in serving.stderr and serving.stderr.count("\n") == 1
    ours.stop()
    blobs = source / BLOBS
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    os.chmod(largest, 0o600)
    with largest.open("r+b") as file:
        file.write(b"damage")
    done = migrate(ours, source, "-n", "default")
    assert done.returncode == 1
    assert words(done) == {f"default {REFERENCE}": "failed", f"default {SEVERAL}": "kept"}
    assert f"migrate content sha256:{largest.name}: {largest} has other bytes" in done.stderr
    for wrong, why in (
        (("-n", "nobody"), "migrate namespace nobody: only default, k8s.io are there"),
        (("--from", str(ours.base)), f"read {ours.base}: it is no root of containerd's"),
    ):
        refused = migrate(ours, source, *wrong)
        assert refused.returncode == 1 and why in refused.stderr, refused.stderr
    ours.start()
    assert ours.ctl("images", "ls", check=True).stdout == kept


def record(digest: str, size: int, **more: Tree) -> Tree:
    """An image as containerd's database has it."""
    varint = b""
    value = size << 1
    while value >= 0x80:
        varint += bytes([value & 0x7F | 0x80])
        value >>= 7
    target = {
        b"digest": digest.encode(),
        b"mediatype": MANIFEST.encode(),
        b"size": varint + bytes([value]),
    }
    return {b"target": target, **{name.encode(): tree for name, tree in more.items()}}


def test_one_record_that_cannot_be_taken_leaves_the_others(ours: Lighterd, tmp_path: Path) -> None:
    """Of another digest, or damaged; an image's annotations come along."""
    layout = Layout()
    good = layout.image([{"a": b"b"}])
    (tmp_path / BLOBS).mkdir(parents=True)
    for digest, data in layout.blobs.items():
        (tmp_path / BLOBS / digest.removeprefix("sha256:")).write_bytes(data)
    notes = {b"org.example/key": b"value"}
    found = record(good["digest"], good["size"], annotations=notes)
    no_size = {name: value for name, value in found[b"target"].items() if name != b"size"}
    images: Tree = {
        b"example.com/a:1": record("sha512:" + "0" * 128, 1),
        b"example.com/b:1": {b"labels": {b"a": b"b"}},
        b"example.com/c:1": {**found, b"target": no_size},
        b"example.com/d:1": {**found, b"target": {**no_size, b"size": b"\xff"}},
        b"example.com/e:1": found,
    }
    (tmp_path / DATABASE).parent.mkdir()
    (tmp_path / DATABASE).write_bytes(database({b"v1": {b"default": {b"images": images}}}))
    done = migrate(ours, tmp_path)
    assert done.returncode == 1
    assert words(done) == {
        **{f"default example.com/{name}:1": "failed" for name in "abcd"},
        "default example.com/e:1": "taken",
    }
    assert "example.com/a:1: parse digest 'sha512:000" in done.stderr
    assert "example.com/b:1: read its target: KeyError" in done.stderr
    ours.start()
    with Api(ours.grpc_address) as api:
        taken = api.call(images_pb2, "Images", "Get", name="example.com/e:1").image
    assert dict(taken.target.annotations) == {"org.example/key": "value"}


def test_a_container_moves_as_the_page_says(containerd: Containerd, ours: Lighterd) -> None:
    """Its successor by ctl first, then the end of what containerd runs."""
    text = PAGE.read_text().partition("## Containers")[2].partition("## ")[0]
    block = re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)[0]
    assert migrate(ours, root_of(containerd), "-n", "default").returncode == 0
    ours.start()
    fifos = ("--fifo-dir", str(ours.base / "fifos"))
    containerd.ctr("run", "-d", *fifos, REFERENCE, "web", "sleep", "600")
    environ = {
        **os.environ,
        "CONTAINERD_ADDRESS": containerd.address,
        "LIGHTER_ADDRESS": ours.address,
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    try:
        script = block.replace("docker.io/library/app:1 web", f"{REFERENCE} web sleep 600")
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=ours.base,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert containerd.ctr("containers", "ls", "-q") == b""
        assert "RUNNING" in ours.ctl("tasks", "ls", check=True).stdout.decode()
    finally:
        if containerd.ctr("containers", "ls", "-q"):
            containerd.ctr("tasks", "rm", "-f", "web")
            containerd.ctr("containers", "rm", "web")
        ours.ctl("rm", "-f", "web")
