"""The verbs of `ctl images` as users type them, with ctr, skopeo and umoci as second opinions."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lighter.proto import errors
from tests import images
from tests.containerd import Containerd
from tests.harness import Lighterd, await_that

NAME = images.REFERENCE
SHORT = "busybox:test"


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    with Containerd() as started:
        yield started


@pytest.fixture
def folder(lighterd: Lighterd) -> Path:
    """A directory of the test's own, gone with the instance."""
    path = lighterd.base / "own"
    path.mkdir()
    return path


def lines(output: bytes) -> list[str]:
    return [line.rstrip() for line in output.decode().splitlines()]


def words(output: bytes) -> list[list[str]]:
    return [line.split() for line in lines(output)]


def names(lighterd: Lighterd) -> list[str]:
    return lines(lighterd.ctl("images", "ls", "-q", check=True).stdout)


def mount_lines(target: Path) -> list[str]:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in mounts if line.split()[4] == str(target)]


def test_what_users_see_is_what_ctr_prints(
    lighterd: Lighterd, containerd: Containerd, folder: Path
) -> None:
    archive, target = str(images.busybox_archive()), str(folder)
    for verb in (
        ("import", archive),
        ("ls",),
        ("check",),
        ("check", "-q"),
        ("tag", NAME, "a:1", "b:2"),
        ("label", "a:1", "z=1"),
        ("label", "-r", "a:1", "q=1"),
        ("ls", "labels.q==1"),
        ("ls", "-q", "name~=busy"),
        ("convert", "--uncompress", "b:2", "c:3"),
        ("mount", NAME, target),
        ("unmount", "--rm", target),
        ("rm", "a:1", "b:2"),
    ):
        ours = lighterd.ctl("images", *verb, check=True).stdout
        assert words(ours) == words(containerd.ctr("images", *verb)), verb


def test_others_read_what_is_exported(
    lighterd: Lighterd, busybox: str, containerd: Containerd, folder: Path
) -> None:
    archive = folder / "image.tar"
    lighterd.ctl("images", "tag", SHORT, "example.com/second:2", check=True)
    lighterd.ctl("images", "export", str(archive), SHORT, "example.com/second:2", check=True)
    containerd.ctr("images", "import", str(archive))
    assert containerd.ctr("images", "check", "-q").decode().split() == [
        NAME,
        "example.com/second:2",
    ]
    for form, where in (("docker-archive", "docker-archive:"), ("oci-archive", "oci-archive:")):
        tag = SHORT if form == "docker-archive" else "test"
        copied = folder / form
        run("skopeo", "copy", f"{where}{archive}:{tag}", f"oci:{copied}:test")
        run("umoci", "unpack", "--image", f"{copied}:test", str(folder / f"bundle-{form}"))
        assert (folder / f"bundle-{form}/rootfs/bin/busybox").is_file()


def test_what_others_write_is_imported(
    lighterd: Lighterd, containerd: Containerd, folder: Path
) -> None:
    plain = images.busybox_archive()
    containerd.ctr("images", "import", str(plain))
    containerd.ctr("images", "export", str(folder / "ctr.tar"), NAME)
    run(
        "skopeo", "copy", f"oci-archive:{plain}:test", f"docker-archive:{folder}/docker.tar:{SHORT}"
    )
    run("skopeo", "copy", f"oci-archive:{plain}:test", f"oci:{folder}/layout:test")
    (folder / "ctr.tar.zst").write_bytes(
        zstandard.ZstdCompressor().compress((folder / "ctr.tar").read_bytes())
    )
    for source, options, name in (
        ("ctr.tar", (), NAME),
        ("ctr.tar.zst", (), NAME),
        ("docker.tar", (), NAME),
        ("docker.tar", ("--compress-blobs",), NAME),
        ("layout", ("--base-name", "example.com/busybox"), "example.com/busybox:test"),
    ):
        lighterd.ctl("images", "import", *options, str(folder / source), check=True)
        assert names(lighterd) == [name], source
        ran = lighterd.ctl("run", "--rm", name, "c1", "echo", "hello", check=True)
        assert ran.stdout == b"hello\n"
        if options == ("--compress-blobs",):
            shown = lighterd.ctl("images", "inspect", name, check=True).stdout.decode()
            assert "rootfs.diff.tar.gzip" in shown
        lighterd.ctl("images", "rm", name, check=True)


def test_a_layer_of_two_images_is_compressed_once(
    lighterd: Lighterd, busybox: str, folder: Path
) -> None:
    """docker save of several images: each names the layers that they share."""
    copies = [f"example.com/copy:{number}" for number in range(2)]
    for copy in copies:
        lighterd.ctl("images", "tag", busybox, copy, check=True)
    plain = folder / "plain.tar"
    lighterd.ctl("images", "export", str(plain), busybox, check=True)
    for copy in copies:
        target = f"docker-archive:{folder}/{copy[-1]}.tar:{copy}"
        run("skopeo", "copy", f"oci-archive:{plain}", target)
    both = folder / "both.tar"
    manifests = []
    with tarfile.open(both, "w") as merged:
        for copy in copies:
            with tarfile.open(folder / f"{copy[-1]}.tar") as one:
                for member in one:
                    data = one.extractfile(member)
                    if member.name == "manifest.json":
                        assert data is not None
                        manifests += json.load(data)
                    elif member.name not in merged.getnames():
                        merged.addfile(member, data)
        text = json.dumps(manifests).encode()
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(text)
        merged.addfile(entry, io.BytesIO(text))
    for copy in copies:
        lighterd.ctl("images", "rm", copy, check=True)

    lighterd.ctl("images", "import", "--compress-blobs", str(both), check=True)

    for copy in copies:
        shown = lighterd.ctl("images", "inspect", copy, check=True).stdout.decode()
        assert "rootfs.diff.tar.gzip" in shown


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr.decode()}"


# --- where an archive goes


def test_an_archive_goes_where_it_is_sent(lighterd: Lighterd, busybox: str, folder: Path) -> None:
    file = folder / "image.tar"
    lighterd.ctl("images", "export", str(file), SHORT, check=True)
    whole = file.read_bytes()
    assert lighterd.ctl("images", "export", "-", SHORT, check=True).stdout == whole  # a pipe
    appended = folder / "appended"
    appended.write_bytes(b"before")
    with appended.open("ab") as out:
        argv = lighterd.ctl_argv("images", "export", "-", SHORT)
        subprocess.run(argv, stdout=out, timeout=30, check=True)
    assert appended.read_bytes() == b"before" + whole
    lighterd.ctl("images", "export", "/dev/null", SHORT, check=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo, got = folder / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    lighterd.ctl("images", "export", str(fifo), SHORT, check=True)
    reader.join(20)
    assert got == [whole]
    link = folder / "link"
    link.symlink_to(file)
    file.write_bytes(b"old")
    file.chmod(0o640)
    lighterd.ctl("images", "export", str(link), SHORT, check=True)
    assert link.is_symlink()
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (whole, 0o640)


@pytest.mark.parametrize(
    ("who", "point"),
    [("ctl", "export.blob"), ("manager", "export.blob"), ("manager", "export.opened")],
)
def test_f_36_a_kill_during_an_export_leaves_the_old_file(
    lighterd: Lighterd, busybox: str, folder: Path, who: str, point: str
) -> None:
    trace = folder.parent / "trace"
    action = "abort" if who == "manager" else "stop"
    lighterd.restart(FAULT=f"{point}:{action}", FAULT_TRACE=str(trace))
    file = folder / "image.tar"
    file.write_bytes(b"old")
    argv = lighterd.ctl_argv("images", "export", str(file), SHORT)
    export = subprocess.Popen(argv, stderr=subprocess.PIPE)
    await_that(lambda: trace.exists() and point in trace.read_text(), 20, f"{point} is passed")
    if who == "ctl":
        export.kill()
        lighterd.cont()
    else:
        assert lighterd.process is not None
        lighterd.process.wait(20)
    _, complaint = export.communicate(timeout=30)
    assert export.returncode == (1 if who == "manager" else -signal.SIGKILL), complaint
    if who == "manager":
        lighterd.kill9()
        lighterd.start()
    assert os.listdir(folder) == ["image.tar"]
    assert file.read_bytes() == b"old"
    lighterd.ctl("images", "export", str(file), SHORT, check=True)
    assert tarfile.is_tarfile(file)


def test_a_file_that_the_caller_may_only_read_is_not_written(
    lighterd: Lighterd, busybox: str, folder: Path
) -> None:
    file = folder / "secret"
    file.write_bytes(b"old")
    with lighterd.client() as client, file.open("rb") as opened:
        for target, error in (
            (f"/proc/{os.getpid()}/fd/{opened.fileno()}", errors.PermissionDenied),
            (str(file), errors.InvalidArgument),
            (f"/proc/{lighterd.pid}/fd/1", errors.InvalidArgument),
            (f"/proc/{os.getpid()}/fd/../../self/fd/1", errors.InvalidArgument),
        ):
            with pytest.raises(error):
                list(client.stream("images", "export", target=target, names=[NAME]))
    assert file.read_bytes() == b"old"


# --- mounts


def test_a_mount_outlives_the_manager(lighterd: Lighterd, busybox: str, folder: Path) -> None:
    target = str(folder)
    shown = lighterd.ctl("images", "mount", SHORT, target, check=True).stdout
    assert re.fullmatch(rf"sha256:[0-9a-f]{{64}}\n{target}\n", shown.decode())
    (line,) = mount_lines(folder)
    assert set(line.split()[5].split(",")) >= {"ro", "nosuid", "nodev"}
    assert lighterd.ctl("images", "mount", SHORT, target).returncode == 1
    lighterd.ctl("images", "rm", SHORT, check=True)
    lighterd.kill9()
    lighterd.start()
    assert (folder / "bin/busybox").is_file()
    with (folder / "bin/busybox").open("rb"):
        busy = lighterd.ctl("images", "unmount", target)
    assert (busy.returncode, b"a process uses it" in busy.stderr) == (1, True)
    lighterd.ctl("images", "unmount", target, check=True)
    assert not mount_lines(folder)
    assert lighterd.ctl("images", "unmount", target).returncode == 1


def test_what_was_written_stays_until_it_is_to_go(
    lighterd: Lighterd, busybox: str, folder: Path
) -> None:
    target = str(folder)
    for verb in (("mount", "--rw", SHORT, target), ("unmount", target)):
        lighterd.ctl("images", *verb, check=True)
        if verb[0] == "mount":
            (folder / "written").write_text("kept")
    lighterd.restart()
    refused = lighterd.ctl("images", "mount", SHORT, target)
    assert (refused.returncode, b"unmount --rm" in refused.stderr) == (1, True)
    lighterd.ctl("images", "mount", "--rw", SHORT, target, check=True)
    assert (folder / "written").read_text() == "kept"
    run("umount", target)
    lighterd.ctl("images", "unmount", "--rm", target, check=True)
    lighterd.ctl("images", "mount", SHORT, target, check=True)
    assert not (folder / "written").exists()
    run("umount", target)  # as the tutorial does it
    lighterd.ctl("images", "mount", SHORT, target, check=True)
    lighterd.ctl("images", "unmount", target, check=True)


@pytest.mark.parametrize("point", ["mount.prepared", "mount.mounted"])
@pytest.mark.parametrize("rw", [False, True])
def test_f_36_a_manager_killed_while_it_mounts_leaves_nothing(
    lighterd: Lighterd, busybox: str, folder: Path, point: str, rw: bool
) -> None:
    lighterd.restart(FAULT=f"{point}:abort")
    options = ["--rw"] if rw else []
    assert lighterd.ctl("images", "mount", *options, SHORT, str(folder)).returncode == 1
    lighterd.kill9()
    lighterd.start()
    await_that(lambda: not mount_lines(folder), 20, "the half-made mount is gone")
    await_that(lambda: mounted_snapshots(lighterd) == [], 20, "its snapshot too")


@pytest.mark.parametrize("rw", [False, True])
def test_f_36_a_manager_killed_while_it_unmounts_has_a_next_that_can(
    lighterd: Lighterd, busybox: str, folder: Path, rw: bool
) -> None:
    options = ["--rw"] if rw else []
    lighterd.ctl("images", "mount", *options, SHORT, str(folder), check=True)
    lighterd.restart(FAULT="unmount.unmounted:abort")
    unmount = ("images", "unmount", "--rm", str(folder))
    assert lighterd.ctl(*unmount).returncode == 1
    lighterd.kill9()
    lighterd.start()
    assert not mount_lines(folder)
    lighterd.ctl(*unmount)  # of a view the next manager may be rid already
    await_that(lambda: mounted_snapshots(lighterd) == [], 20, "its snapshot is gone")


def mounted_snapshots(lighterd: Lighterd) -> list[Any]:
    with lighterd.client() as client:
        rows = client.call("snapshots", "list", snapshotter="overlayfs")["snapshots"]
    return [row for row in rows if row["kind"] != "committed"]


def test_a_mount_of_others_is_not_taken_off(lighterd: Lighterd, busybox: str, folder: Path) -> None:
    target = str(folder)
    lighterd.ctl("images", "mount", SHORT, target, check=True)
    run("mount", "-t", "tmpfs", "other", target)
    lighterd.ctl("images", "unmount", target)
    assert any("tmpfs" in line for line in mount_lines(folder))
    run("umount", target)
    run("umount", target)


# --- what is refused

BAD = [
    (("export", "x.tar", "nope"), "export image nope: there is no such image"),
    (("export", "/no/such/x.tar", SHORT), "write /no/such/x.tar: No such file"),
    (("export", "--platform", "x", "x.tar", SHORT), "parse platform 'x'"),
    (("import", "/no/such.tar"), "open /no/such.tar: No such file"),
    (("import", "/proc"), "import /proc: it has no index.json"),
    (("import", "--platform", "a/b/c/d", "/dev/null"), "parse platform"),
    (("tag", "nope", "a:1"), "find image nope: there is no such image"),
    (("tag", SHORT, NAME), f"create image {NAME}: it already exists"),
    (("label", "nope", "a=b"), "find image nope: there is no such image"),
    (("check", "=="), "parse filter '=='"),
    (("ls", "name=~x"), "parse filter 'name=~x'"),
    (("convert", "--oci", "nope", "a:1"), "convert image nope: there is no such image"),
    (("convert", SHORT, "a:1"), "nothing to convert"),
    (("mount", SHORT, "/"), "mount image on /: it would hide"),
    (("mount", SHORT, "/no/such"), "open /no/such: No such file"),
    (("mount", SHORT, "/etc/passwd"), "open /etc/passwd: Not a directory"),
    (("mount", "nope", "/tmp"), "find image nope: there is no such image"),
    (("unmount", "/tmp"), "unmount /tmp: no image of namespace default"),
    (("usage", "nope"), "find image nope: there is no such image"),
    (("inspect", "nope"), "find image nope: there is no such image"),
    (("rm", "nope"), "delete image nope: there is no such image"),
]


def test_bad_input_is_one_line_and_leaves_nothing(
    lighterd: Lighterd, busybox: str, folder: Path
) -> None:
    for verb, message in BAD:
        argv = lighterd.ctl_argv("images", *verb)
        done = subprocess.run(argv, capture_output=True, timeout=30, cwd=folder, check=False)
        complaint = done.stderr.decode()
        assert (done.returncode, complaint.count("\n")) == (1, 1), (verb, complaint)
        assert message in complaint, (verb, complaint)
        assert not done.stdout, verb
    assert os.listdir(folder) == []
    assert names(lighterd) == [NAME]


def test_removing_goes_on_after_a_missing_one(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("images", "tag", SHORT, "a:1", check=True)
    done = lighterd.ctl("images", "rm", "no:1", "a:1", "no:2")
    assert (done.returncode, done.stdout) == (1, b"a:1\n")
    assert [line.split(":")[1] for line in lines(done.stderr)] == [
        " delete image no",
        " delete image no",
    ]


def test_sec_33_names_of_an_archive_stay_below_the_name_that_was_asked_for(
    lighterd: Lighterd, busybox: str
) -> None:
    """A foreign name in an archive changes nothing when the caller says what may be named."""
    archive = str(images.busybox_archive(compressed=True))  # names busybox, with another digest
    before = json.loads(lighterd.ctl("--format", "json", "images", "ls", check=True).stdout)
    lighterd.ctl(
        "images", "import", "--base-name", "example.com/mine", "--digests", archive, check=True
    )
    after = json.loads(lighterd.ctl("--format", "json", "images", "ls", check=True).stdout)
    assert before[0] in after
    (new,) = [row["name"] for row in after if row not in before]
    assert re.fullmatch(r"example\.com/mine@sha256:[0-9a-f]{64}", new)


@pytest.mark.parametrize("flags", [(), ("--no-unpack",)])
def test_sec_33_a_name_that_an_archive_moves_is_told(
    lighterd: Lighterd, busybox: str, flags: tuple[str, ...]
) -> None:
    def digest() -> str:
        (row,) = json.loads(lighterd.ctl("--format", "json", "images", "ls", check=True).stdout)
        return str(row["digest"])

    before = digest()
    archive = str(images.busybox_archive(compressed=True))  # names busybox, with another digest
    done = lighterd.ctl("images", "import", *flags, archive, check=True)
    assert digest() != before
    assert done.stderr.decode() == f"moved {NAME} from {before} to {digest()}\n"
    assert lighterd.ctl("images", "import", *flags, archive, check=True).stderr == b""


def test_usage_has_a_line_for_each_snapshot(lighterd: Lighterd, busybox: str) -> None:
    head, *rows = words(lighterd.ctl("images", "usage", SHORT, check=True).stdout)
    listed = json.loads(lighterd.ctl("--format", "json", "snapshots", "ls", check=True).stdout)
    assert head == ["KEY", "SIZE", "INODES"]
    assert [row[0] for row in rows] == [row["key"] for row in listed]
    entries = len(list(lighterd.root.glob("snapshots/overlayfs/*/fs/**/*")))
    assert int(rows[0][-1]) >= entries > 100


def test_check_tells_what_is_missing(lighterd: Lighterd, busybox: str) -> None:
    with lighterd.client() as client:
        details = client.call("images", "get", name=NAME)
    layer = details["manifest"]["layers"][0]["digest"]
    blob = lighterd.root / "content/blobs/sha256" / layer[7:]
    data = blob.read_bytes()
    blob.unlink()
    assert words(lighterd.ctl("images", "check", check=True).stdout)[1][3:5] == [
        "incomplete",
        "(1/2)",
    ]
    assert lighterd.ctl("images", "check", "-q", check=True).stdout == b""
    assert b"missing" in lighterd.ctl("images", "inspect", NAME, check=True).stdout
    blob.write_bytes(data)
    assert lighterd.ctl("images", "check", "-q", check=True).stdout == f"{NAME}\n".encode()
