"""`ctl snapshots` and unpacking against a real manager: its spawner, its workers, its runtime."""

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lighter.daemon.images.chain import chain_ids
from tests.containerd import Containerd
from tests.harness import Lighterd, await_that
from tests.loopdisk import btrfs_at
from tests.processes import with_title
from tests.security.images import DIR, FILE, HARDLINK, archive, diff_id, entry
from tests.unit.images.build import LAYER, Layout

pytestmark = pytest.mark.root


def lines(lighterd: Lighterd, *words: str) -> list[str]:
    return lighterd.ctl("snapshots", *words, check=True).stdout.decode().splitlines()


def refused(lighterd: Lighterd, *words: str) -> str:
    done = lighterd.ctl("snapshots", *words)
    assert done.returncode == 1
    return done.stderr.decode()


def busybox_layer() -> bytes:
    program = Path("/bin/busybox").read_bytes()
    return archive(entry("bin", DIR), entry("bin/busybox", FILE, program, mode=0o755))


def stack(count: int) -> list[bytes]:
    """A busybox and layers of one file each."""
    return [
        busybox_layer(),
        *(archive(entry(f"f{number}", FILE, b"%d" % number)) for number in range(1, count)),
    ]


def image_file(path: Path, layers: list[bytes], name: str, how: str = "") -> str:
    built = Layout()
    described = built.image([], blobs=layers)
    if how == "zstd":
        described = zstd_image(built, layers)
    built.list(described, name=name)
    path.write_bytes(built.archive())
    return str(path)


def zstd_image(built: Layout, layers: list[bytes]) -> dict[str, Any]:
    built.blobs.clear()
    return built.image(
        [], blobs=[zstandard.compress(layer) for layer in layers], media_type=LAYER + "+zstd",
        diff_ids=[diff_id(layer) for layer in layers],
    )  # fmt: skip


def test_zstd_layers_run(lighterd: Lighterd, tmp_path: Path) -> None:
    """The worker loads zstd after its fork; the spawner and its shims never do."""
    name = "docker.io/library/zstd:1"
    lighterd.ctl("images", "import", image_file(tmp_path / "i", stack(3), name, "zstd"), check=True)
    done = lighterd.ctl("run", "--rm", name, "c", "/bin/busybox", "cat", "/f1", "/f2", check=True)
    assert done.stdout == b"12"
    maps = Path(
        f"/proc/{with_title(f'lighter-spawner --instance {lighterd.instance}')[0]}/maps"
    ).read_text()
    assert "isal" in maps
    assert "zstandard" not in maps


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [128, 500])
def test_f_61_a_container_of_many_layers_runs(
    lighterd: Lighterd, tmp_path: Path, count: int
) -> None:
    name = "docker.io/library/tower:1"
    file = image_file(tmp_path / "i", stack(count), name)
    lighterd.ctl("images", "import", file, check=True, timeout=240)
    top = f"/f{count - 1}"
    lighterd.ctl("run", "-d", name, "c", "/bin/busybox", "sleep", "1000", check=True)
    done = lighterd.ctl("exec", "c", "/bin/busybox", "cat", "/f1", top, check=True)
    assert done.stdout == b"1%d" % (count - 1)
    lighterd.ctl("rm", "-f", "c", check=True)


def test_f_61_501_layers_are_refused_with_the_limit(lighterd: Lighterd, tmp_path: Path) -> None:
    file = image_file(tmp_path / "i", stack(501), "docker.io/library/tower:1")
    done = lighterd.ctl("images", "import", file)
    assert done.returncode == 1
    assert b"501 layers, overlayfs can mount 500" in done.stderr


def test_snapshots_are_made_listed_mounted_and_removed(
    lighterd: Lighterd, busybox: str, tmp_path: Path
) -> None:
    (base,) = lines(lighterd, "ls", "-q")
    lines(lighterd, "prepare", "work", base)
    assert lines(lighterd, "ls")[0].split() == ["KEY", "PARENT", "KIND"]
    rows = [line.split() for line in lines(lighterd, "ls")[1:]]
    assert [base, "Committed"] in rows
    assert ["work", base, "Active"] in rows

    point = tmp_path / "m"
    point.mkdir()
    (command,) = lines(lighterd, "mounts", str(point), "work")
    assert command.startswith(f"mount -t overlay overlay {point} -o ")
    subprocess.run(command, shell=True, check=True)
    (point / "new").write_bytes(b"x" * 10_000)
    subprocess.run(["umount", str(point)], check=True)

    assert lines(lighterd, "usage", "-b", "work")[1].split() == ["work", "16384", "2"]
    layer = lighterd.ctl("snapshots", "diff", "work", check=True).stdout
    with (tmp_path / "layer").open("wb") as file:
        argv = lighterd.ctl_argv("snapshots", "diff", "--compression", "none", base, "work")
        subprocess.run(argv, stdout=file, check=True)
    assert gzip.decompress(layer) == (tmp_path / "layer").read_bytes()
    names = subprocess.run(["tar", "-tz"], input=layer, capture_output=True, check=True).stdout
    assert names == b"new\n"
    lines(lighterd, "commit", "mine", "work")
    assert lighterd.ctl("snapshots", "diff", "mine", check=True).stdout == layer
    (view,) = lines(lighterd, "view", "-t", str(point), "look", "mine")
    subprocess.run(view, shell=True, check=True)
    assert (point / "new").stat().st_size == 10_000
    with pytest.raises(OSError, match="Read-only"):
        (point / "more").touch()
    subprocess.run(["umount", str(point)], check=True)

    assert lines(lighterd, "tree") == [f" {base}", "  \\_ mine", "    \\_ look"]
    assert "child" in lines(lighterd, "label", "mine", "child=1")[0]
    info = json.loads("\n".join(lines(lighterd, "info", "mine")))
    assert (info["parent"], info["kind"], info["labels"]["child"]) == (base, "committed", "1")
    assert "containerd.io/gc.root" in info["labels"]
    assert "parent of look" in refused(lighterd, "rm", "mine")
    lines(lighterd, "rm", "look", "mine")
    assert lines(lighterd, "ls", "-q") == [base]


def test_what_is_wrong_is_told(lighterd: Lighterd, busybox: str) -> None:
    (base,) = lines(lighterd, "ls", "-q")
    assert "has none in namespace" in refused(lighterd, "info", "nothing")
    assert "there are" in refused(lighterd, "--snapshotter", "zfs", "ls")
    assert "is committed" in refused(lighterd, "mounts", "/mnt", base)
    lines(lighterd, "prepare", "work", base)
    assert "already exists" in refused(lighterd, "prepare", "work")
    assert "is active, not committed" in refused(lighterd, "prepare", "x", "work")
    assert "is the parent" in refused(lighterd, "rm", base)
    lighterd.ctl("run", "-d", busybox, "c", "sleep", "1000", check=True)
    (key,) = set(lines(lighterd, "ls", "-q")) - {base, "work"}
    assert "container c uses it" in refused(lighterd, "rm", key)
    assert "container c uses it" in refused(lighterd, "commit", "x", key)
    lines(lighterd, "rm", "work")


def test_an_image_is_unpacked_by_name_and_by_digest(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("snapshots", "--snapshotter", "native", "unpack", busybox, check=True)
    native = lines(lighterd, "--snapshotter", "native", "ls", "-q")
    assert native == lines(lighterd, "ls", "-q")
    lines(lighterd, "rm", *native)
    listed = json.loads(lighterd.ctl("--format", "json", "images", "ls", check=True).stdout)
    done = lighterd.ctl("snapshots", "unpack", listed[0]["digest"], check=True)
    assert b"done" in done.stdout + done.stderr
    assert lines(lighterd, "ls", "-q") == native


def test_the_columns_are_ctrs(lighterd: Lighterd, tmp_path: Path) -> None:
    layers = stack(3)
    file = image_file(tmp_path / "i", layers, "docker.io/library/tower:1")
    lighterd.ctl("images", "import", file, check=True)
    with Containerd() as containerd:
        containerd.ctr("images", "import", file)
        theirs = containerd.ctr("snapshots", "ls").decode().splitlines()
        tree = containerd.ctr("snapshots", "tree").decode().splitlines()
    assert lines(lighterd, "ls")[0].split() == theirs[0].split()
    assert sorted(map(str.split, lines(lighterd, "ls"))) == sorted(map(str.split, theirs))
    assert lines(lighterd, "tree") == tree
    assert len(tree) == len(chain_ids(map(diff_id, layers)))


def test_sec_10_a_layer_above_the_configured_limit_is_refused(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    config = "version = 3\n[plugins.'io.lighter.v1'.images]\nmax_layer_bytes = 65536\n"
    limited = make_lighterd(config=config).start()
    small = image_file(
        tmp_path / "a", [archive(entry("f", FILE, bytes(50_000)))], "example.com/a:1"
    )
    large = image_file(
        tmp_path / "b", [archive(entry("f", FILE, bytes(99_000)))], "example.com/b:1"
    )
    limited.ctl("images", "import", small, check=True)
    done = limited.ctl("images", "import", large)
    assert done.returncode == 1
    assert b"65536 are allowed" in done.stderr
    assert len(lines(limited, "ls", "-q")) == 1


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A directory on a btrfs. To be asked for before the manager that lives there."""
    place = tmp_path / "btrfs"
    place.mkdir()
    with btrfs_at(place):
        yield place


def test_containers_stand_on_btrfs(
    btrfs: Path, make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    lighterd = make_lighterd(config=_config("btrfs"))
    lighterd.root.symlink_to(btrfs)
    _stand(lighterd.start(), tmp_path, btrfs / "snapshots/btrfs")


def test_containers_stand_on_erofs(make_lighterd: Callable[..., Lighterd], tmp_path: Path) -> None:
    lighterd = make_lighterd(config=_config("erofs")).start()
    _stand(lighterd, tmp_path, lighterd.root / "snapshots/erofs")


def _config(snapshotter: str) -> str:
    return f'version = 3\n[plugins."io.lighter.v1"]\nsnapshotter = "{snapshotter}"\n'


def _stand(lighterd: Lighterd, tmp_path: Path, left: Path) -> None:
    """Layers with removals and a link to what is below, a container that writes, and all of it gone
    at the end."""
    name = "docker.io/library/stack:1"
    top = archive(
        entry(".wh.f1", FILE), entry("f3", FILE, b"3"), entry("linked", HARDLINK, link="f2")
    )
    layers = [*stack(3), top]
    lighterd.ctl("images", "import", image_file(tmp_path / "i", layers, name), check=True)
    box = "/bin/busybox"
    lighterd.ctl("run", "-d", name, "c", box, "sleep", "1000", check=True)
    done = lighterd.ctl("exec", "c", box, "sh", "-c", "cat /f*; echo new >/new", check=True)
    assert done.stdout == b"23"
    assert lighterd.ctl("exec", "c", box, "cat", "/linked", check=True).stdout == b"2"
    assert lighterd.ctl("exec", "c", box, "cat", "/new", check=True).stdout == b"new\n"
    done = lighterd.ctl("run", "--rm", name, "d", box, "ls", "/", check=True)
    assert b"new" not in done.stdout.split()
    lighterd.ctl("rm", "-f", "c", check=True)
    lighterd.ctl("images", "rm", "--sync", name, check=True)
    await_that(lambda: not list(left.iterdir()), 30, "no snapshot is left")
