"""Volumes as a user meets them: chapter 8 of the tutorial, docker's -v, and what may not happen."""

import json
import os
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.layered import entry, import_image


@pytest.fixture
def lighterd(shared: Lighterd) -> Iterator[Lighterd]:
    yield shared
    shared.clear()
    shared.ctl("volume", "prune", "-af", check=True)
    assert names(shared) == []
    assert list(shared.root.glob("volumes/.removed/*")) == []


def names(lighterd: Lighterd) -> list[str]:
    return lighterd.ctl("volume", "ls", "-q", check=True).stdout.decode().split()


def run(lighterd: Lighterd, *words: str) -> str:
    """`ctl run --rm` to its end; its output."""
    return lighterd.ctl("run", "--rm", *words, check=True).stdout.decode()


def test_chapter_8_a_file_written_inside_is_on_the_host(lighterd: Lighterd) -> None:
    shared = lighterd.base / "share"
    shared.mkdir()
    mount = f"type=bind,src={shared},dst=/hostdir,options=rbind:rw"
    run(lighterd, "--mount", mount, REFERENCE, "box", "sh", "-c", "echo hello >/hostdir/file")
    assert (shared / "file").read_text() == "hello\n"
    (shared / "back").write_text("from the host")
    assert run(lighterd, "-v", f"{shared}:/d:ro", "--name", "b", REFERENCE, "cat", "/d/back") == (
        "from the host"
    )
    refused = lighterd.ctl("run", "--rm", "-v", f"{shared}:/d:ro", "--name", "b", REFERENCE,
                           "touch", "/d/x")  # fmt: skip
    assert refused.returncode == 1 and b"Read-only file system" in refused.stderr


def test_z_has_no_effect_on_what_a_container_without_a_label_binds(lighterd: Lighterd) -> None:
    shared = lighterd.base / "unlabelled"
    shared.mkdir()
    before = os.listxattr(shared)
    words = ("-v", f"{shared}:/d:Z", "-v", "data:/v:z,ro")
    words += ("--mount", f"type=bind,src={shared},dst=/m,options=rbind:z")
    script = "echo 1 >/d/f; cat /m/f; grep ' /v ' /proc/mounts"
    told = run(lighterd, *words, REFERENCE, "plain", "sh", "-c", script).splitlines()
    assert told[0] == "1" and "ro," in told[1]
    assert os.listxattr(shared) == before
    refused = lighterd.ctl("create", "-v", f"{shared}:/d:z,Z", REFERENCE, "true")
    assert refused.returncode == 2 and b"exclude each other" in refused.stderr


def test_a_named_volume_outlives_its_containers(lighterd: Lighterd) -> None:
    assert lighterd.ctl("volume", "create", "--label", "a=b", "data", check=True).stdout == (
        b"data\n"
    )
    run(lighterd, "-v", "data:/d", REFERENCE, "one", "sh", "-c", "echo 1 >/d/f")
    assert run(lighterd, "-v", "data:/else:ro", REFERENCE, "two", "cat", "/else/f") == "1\n"
    (shown,) = json.loads(lighterd.ctl("volume", "inspect", "-s", "data", check=True).stdout)
    assert shown["Labels"] == {"a": "b"} and shown["Containers"] == []
    assert shown["UsageData"]["Size"] > 0
    assert Path(shown["Mountpoint"], "f").read_text() == "1\n"
    assert Path(shown["Mountpoint"]) == lighterd.root / "volumes/default/data/_data"
    shape = ("--format", "{{.Name}} {{.Links}}")
    assert lighterd.ctl("volume", "ls", *shape, check=True).stdout == b"data 0\n"
    assert lighterd.ctl("-n", "other", "volume", "ls", "-q", check=True).stdout == b""
    elsewhere = lighterd.ctl("-n", "other", "volume", "rm", "data")
    assert elsewhere.returncode == 1
    assert b"there is none in namespace other; namespace default has one" in elsewhere.stderr


def test_a_volume_in_use_stays_and_says_who_uses_it(lighterd: Lighterd) -> None:
    lighterd.ctl("run", "-d", "-v", "data:/d", REFERENCE, "web", "sleep", "1000", check=True)
    refused = lighterd.ctl("volume", "rm", "data")
    assert refused.returncode == 1
    assert refused.stderr == b"ctl: delete volume data: container web uses it\n"
    lighterd.kill9()
    lighterd.start()
    assert b"container web uses it" in lighterd.ctl("volume", "rm", "data").stderr
    lighterd.ctl("volume", "prune", "-af", check=True)
    assert names(lighterd) == ["data"]
    refused = lighterd.ctl("namespaces", "rm", "default")
    assert b"1 volumes" in refused.stderr
    lighterd.ctl("rm", "-fv", "web", check=True)
    assert names(lighterd) == ["data"], "it has a name: -v is for those without"
    lighterd.ctl("volume", "rm", "data", check=True)
    assert not (lighterd.root / "volumes/default/data").exists()
    assert lighterd.ctl("volume", "rm", "data").returncode == 1
    lighterd.ctl("volume", "rm", "-f", "data", check=True)


def test_volumes_without_a_name_go_with_rm_v_and_with_rm(lighterd: Lighterd) -> None:
    lighterd.ctl("run", "-d", "-v", "/d", REFERENCE, "a", "sleep", "1000", check=True)
    (name,) = names(lighterd)
    assert len(name) == 64
    lighterd.ctl("rm", "-f", "a", check=True)
    assert names(lighterd) == [name]
    lighterd.ctl("volume", "prune", "-f", check=True)
    assert names(lighterd) == []
    lighterd.ctl("run", "-d", "-v", "/d", REFERENCE, "a", "sleep", "1000", check=True)
    lighterd.ctl("rm", "-fv", "a", check=True)
    assert names(lighterd) == []
    run(lighterd, "-v", "/d", REFERENCE, "a", "touch", "/d/x")
    await_that(lambda: names(lighterd) == [], 10, "--rm took its volume along")
    failed = lighterd.ctl("run", "-v", "/d", "-v", "new:/n", REFERENCE, "a", "no-such-program")
    assert failed.returncode == 127
    lighterd.ctl("volume", "prune", "-f", check=True)
    refused = lighterd.ctl("run", "-v", "/d", "-v", "new2:/n", "--mount", "type=bind,src=/absent,"
                           "dst=/a", REFERENCE, "a", "true")  # fmt: skip
    assert refused.returncode == 125 and b"use /absent to mount it" in refused.stderr
    assert names(lighterd) == ["new"], "nothing stays of a container that was refused"


def test_a_new_volume_is_filled_from_the_image_as_docker_does(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    image = with_directory(lighterd, tmp_path)
    listing = "ls -lAn /data; cat /data/hard2; readlink /data/link; stat -c '%a %u %g' /data"
    fresh = run(lighterd, image, "plain", "sh", "-c", listing)
    filled = run(lighterd, "-v", "full:/data", image, "a", "sh", "-c", listing)
    assert filled == fresh and "shared" in fresh and "750 7 8" in fresh
    data = lighterd.root / "volumes/default/full/_data"
    assert stat.S_IMODE((data / "setuid").stat().st_mode) == 0o4755
    assert (data / "hard1").stat().st_ino == (data / "hard2").stat().st_ino
    assert os.getxattr(data / "hard1", "user.colour") == b"red"
    assert (data / "hard1").stat().st_mtime == 1_000_000_000
    # Only into an empty one, only once, and not with nocopy.
    run(lighterd, "-v", "full:/data", image, "a", "sh", "-c", "rm -r /data/*; echo x >/data/mine")
    assert run(lighterd, "-v", "full:/data", image, "a", "ls", "/data") == "mine\n"
    assert run(lighterd, "-v", "bare:/data:nocopy", image, "a", "ls", "/data") == ""
    assert run(lighterd, "--mount", "type=volume,src=bare2,dst=/data,volume-nocopy", image, "a",
               "ls", "/data") == ""  # fmt: skip


def test_a_container_keeps_its_volume_while_another_would_fill_it(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    """The first copies an image's many files; the second asks for the volume as it is meanwhile."""
    files = [(entry("big", tarfile.DIRTYPE, 0o755), b"")]
    files += [(entry(f"big/{number}"), b"x") for number in range(1500)]
    image = import_image(lighterd, tmp_path, "big", files, {})
    volume = lighterd.root / "volumes/default/v"
    with subprocess.Popen(
        lighterd.ctl_argv("run", "--rm", "-v", "v:/big", image, "a", "ls", "/big"),
        stdout=subprocess.PIPE,
    ) as filling:
        await_that(lambda: list(volume.glob("filling-*")), 60, "the copy is under way")
        run = ("run", "-d", "-v", "v:/x:nocopy", REFERENCE, "b", "sleep", "1000")
        lighterd.ctl(*run, check=True)
        listed, _ = filling.communicate(timeout=60)
        assert filling.returncode == 0 and len(listed.split()) >= 1500
    lighterd.ctl("exec", "b", "touch", "/x/of-b", check=True)
    assert (volume / "_data/of-b").exists()


def test_a_volume_that_was_made_before_goes_to_a_mapped_root(lighterd: Lighterd) -> None:
    lighterd.base.chmod(0o711)  # mapped ids have to pass it
    lighterd.ctl("volume", "create", "pre", check=True)
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    run(lighterd, *maps, "-v", "pre:/d", REFERENCE, "a", "touch", "/d/x")
    found = (lighterd.root / "volumes/default/pre/_data/x").stat()
    assert (found.st_uid, found.st_gid) == (100000, 200000)


def test_the_images_own_volumes(lighterd: Lighterd, tmp_path: Path) -> None:
    image = with_directory(lighterd, tmp_path, volumes={"/data": {}, "/../new": {}})
    lighterd.ctl("run", "-d", image, "a", "sleep", "1000", check=True)
    assert len(names(lighterd)) == 2
    found = lighterd.ctl("exec", "a", "grep", "-c", " /data \\| /new ", "/proc/mounts", check=True)
    assert found.stdout == b"2\n"
    assert b"hard1" in lighterd.ctl("exec", "a", "ls", "/data", check=True).stdout
    lighterd.ctl("rm", "-fv", "a", check=True)
    run(lighterd, "-v", "mine:/data/", image, "a", "true")
    await_that(lambda: names(lighterd) == ["mine"], 10, "only what was asked for is left")


@pytest.mark.parametrize("target", ["/CANARY", "../../../../CANARY"])
def test_sec_46_a_link_in_the_image_fills_nothing_from_the_host(
    lighterd: Lighterd, tmp_path: Path, target: str
) -> None:
    """VOLUME at a link to the host, and a link inside that leads there: both stay in the image."""
    canary = lighterd.base / "share"
    canary.mkdir()
    (canary / "secret").write_text("secret")
    link = target.replace("/CANARY", str(canary))
    image = with_directory(lighterd, tmp_path, links={"data-link": link, "data/inner": link})
    run(lighterd, "-v", "v:/data-link", "-v", "w:/data", image, "a", "true")
    for path in (lighterd.root / "volumes").rglob("*"):
        assert path.name != "secret"
    inner = lighterd.root / "volumes/default/w/_data/inner"
    assert os.readlink(inner) == link
    # A second use, after the container has planted a link where the volume is filled.
    run(
        lighterd, "-v", "w:/data", image, "a", "sh", "-c", f"rm -rf /data/*; ln -s {canary} /data/l"
    )
    run(lighterd, "-v", "w:/data", image, "a", "true")
    assert sorted(os.listdir(canary)) == ["secret"]
    assert (canary / "secret").read_text() == "secret"


def test_propagation_reaches_into_the_container(lighterd: Lighterd) -> None:
    """rslave: what the host mounts later is seen inside; rshared needs a shared mount."""
    shared = lighterd.base / "share"
    shared.mkdir()
    mount("--bind", str(shared), str(shared))
    try:
        mount("--make-private", str(shared))
        refused = lighterd.ctl("run", "-v", f"{shared}:/d:rshared", REFERENCE, "p", "true")
        assert refused.returncode == 125 and b"does not share" in refused.stderr
        mount("--make-shared", str(shared))
        (shared / "sub").mkdir()
        lighterd.ctl("run", "-d", "-v", f"{shared}:/d:rslave", "-v", f"{shared}:/e", REFERENCE,
                     "p", "sleep", "1000", check=True)  # fmt: skip
        mount("-t", "tmpfs", "later", str(shared / "sub"))
        try:
            (shared / "sub" / "seen").touch()
            assert lighterd.ctl("exec", "p", "ls", "/d/sub", check=True).stdout == b"seen\n"
            assert lighterd.ctl("exec", "p", "ls", "/e/sub", check=True).stdout == b""
        finally:
            umount(str(shared / "sub"))
        lighterd.ctl("rm", "-f", "p", check=True)
    finally:
        umount(str(shared))


@pytest.mark.parametrize("point", ["volume.directory-made", "volume.filled", "volume.row-gone"])
def test_a_manager_killed_over_a_volume_leaves_nothing_half_made(
    lighterd: Lighterd, tmp_path: Path, point: str
) -> None:
    image = with_directory(lighterd, tmp_path)
    lighterd.stop()
    lighterd.start(FAULT=f"{point}:abort")
    lighterd.ctl("run", "-d", "-v", "v:/data", image, "a", "sleep", "1000")
    marker = lighterd.root / "volumes/default/v/_data/of-the-deleted"
    if point == "volume.row-gone":
        marker.touch()
        lighterd.ctl("rm", "-f", "a")
        lighterd.ctl("volume", "rm", "v")
    assert lighterd.process is not None
    lighterd.process.wait(20)
    assert lighterd.process.returncode == -signal.SIGKILL
    lighterd.start()
    assert not (point == "volume.row-gone" and marker.exists()), "put away before anybody asks"
    lighterd.ctl("rm", "-f", "a")
    found = run(lighterd, "-v", "v:/data", image, "a", "ls", "/data")
    assert "hard1" in found and "setuid" in found and "of-the-deleted" not in found
    removed = lighterd.root / "volumes/.removed"
    await_that(lambda: not removed.exists() or not list(removed.iterdir()), 10, "swept")
    assert [path.name for path in (lighterd.root / "volumes/default/v").iterdir()] == ["_data"]


def with_directory(
    lighterd: Lighterd,
    tmp_path: Path,
    *,
    volumes: dict[str, dict[str, str]] | None = None,
    links: dict[str, str] | None = None,
) -> str:
    """An image with /data of every kind of file; its name."""
    files = [
        (entry("data", tarfile.DIRTYPE, 0o750, uid=7, gid=8), b""),
        (entry("data/hard1", pax_headers={"SCHILY.xattr.user.colour": "red"}), b"shared"),
        (entry("data/hard2", tarfile.LNKTYPE, linkname="data/hard1"), b""),
        (entry("data/link", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (entry("data/setuid", mode=0o4755, uid=1000), b"x"),
        (entry("data/pipe", tarfile.FIFOTYPE), b""),
        (entry("data/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        *((entry(path, tarfile.SYMTYPE, linkname=to), b"") for path, to in (links or {}).items()),
    ]
    name = "volumed" if volumes or links else "data"
    return import_image(lighterd, tmp_path, name, files, {"Volumes": volumes or {}})


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def umount(path: str) -> None:
    subprocess.run(["umount", path], check=True)
