"""Files of containers: cp both ways in each state, hostile links, diff, export, commit, rmi."""

import io
import json
import os
import signal
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.lives import await_worker, hold_still, process_state, workers
from tests.unit.images.build import Layout, as_json

STATES = ("created", "running", "paused", "stopped", "never")


@pytest.fixture
def lighterd(shared: Lighterd) -> Iterator[Lighterd]:
    yield shared
    shared.clear()
    shared.ctl("volume", "prune", "-af", check=True)


def in_state(lighterd: Lighterd, state: str, *flags: str) -> None:
    """A container `c` with /data/{file,deep/inner,link} and a volume `v` on /v."""
    make = "mkdir -p /data/deep; echo one >/data/file; echo two >/data/deep/inner; "
    make += "ln -s /etc/passwd /data/link; echo three >/v/kept; "
    flags = ("-v", "v:/v", *flags)
    if state == "never":
        lighterd.ctl("containers", "create", *flags, REFERENCE, "c", "true", check=True)
        return
    end = "exit 0" if state == "stopped" else "while :; do sleep 1000; done"
    if state == "created":
        with lighterd.client() as client:
            lighterd.ctl("containers", "create", *flags, REFERENCE, "c", "sh", "-c", make)
            client.call("tasks", "create", id="c")
        return
    lighterd.ctl("run", "-d", *flags, REFERENCE, "c", "sh", "-c", f"{make} touch /data/done; {end}",
                 check=True)  # fmt: skip
    with lighterd.client() as client:
        if state == "stopped":
            client.call("tasks", "wait", id="c", exec_id="")
            await_that(lambda: not lighterd.shims(), 20, "the shim has cleaned up")
            return
    await_that(
        lambda: lighterd.ctl("exec", "c", "test", "-e", "/data/done").returncode == 0, 20, "made"
    )
    if state == "paused":
        lighterd.ctl("pause", "c", check=True)


@pytest.mark.parametrize("state", STATES)
def test_cp_into_and_out_of_a_container_in_each_state(
    lighterd: Lighterd, tmp_path: Path, state: str
) -> None:
    in_state(lighterd, state)
    (tmp_path / "site/sub").mkdir(parents=True)
    (tmp_path / "site/index").write_text("hello")
    (tmp_path / "site/sub/page").write_text("page")
    (tmp_path / "site/page-link").symlink_to("sub/page")
    os.chown(tmp_path / "site/index", 1234, 1234)
    lighterd.ctl("cp", f"{tmp_path}/site", "c:/srv", check=True)
    lighterd.ctl("cp", f"{tmp_path}/site/.", "c:/tmp", check=True)
    if state != "never":  # nobody has made the place of a mount yet
        lighterd.ctl("cp", f"{tmp_path}/site/index", "c:/v/from-host", check=True)
    lighterd.ctl("cp", "-a", f"{tmp_path}/site/index", "c:/tmp/kept-owner", check=True)
    back = tmp_path / "back"
    lighterd.ctl("cp", "c:/srv", str(back), check=True)
    assert (back / "sub/page").read_text() == "page"
    assert os.readlink(back / "page-link") == "sub/page"
    (names := tmp_path / "names").mkdir()
    lighterd.ctl("cp", "c:/tmp/.", str(names), check=True)
    assert {"index", "sub", "page-link", "kept-owner"} <= set(os.listdir(names))
    assert (names / "kept-owner").stat().st_uid == 0
    out = lighterd.ctl("cp", "c:/tmp", "-", check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        owners = {member.name: member.uid for member in tar}
    assert owners["tmp/index"] == 0 and owners["tmp/kept-owner"] == 1234
    volume = lighterd.root / "volumes/default/v/_data"
    if state != "never":
        assert (volume / "from-host").read_text() == "hello", "what is mounted is part of it"
    else:
        (tmp_path / "root/v").mkdir(parents=True)
        (tmp_path / "root/v/early").write_text("early")
        lighterd.ctl("cp", f"{tmp_path}/root/.", "c:/", check=True)
        assert (volume / "early").read_text() == "early", "nor where its place was not made yet"
        lighterd.ctl("start", "c", check=True)
    if state in ("running", "paused", "stopped"):
        lighterd.ctl("cp", "c:/data", str(tmp_path), check=True)
        assert (tmp_path / "data/deep/inner").read_text() == "two\n"
        assert os.readlink(tmp_path / "data/link") == "/etc/passwd"
        lighterd.ctl("cp", "-L", "c:/data/link", str(tmp_path / "users"), check=True)
        assert "user:x:1000" in (tmp_path / "users").read_text()
        lighterd.ctl("cp", "c:/v/kept", str(tmp_path), check=True)
        assert (tmp_path / "kept").read_text() == "three\n"
        lighterd.ctl("cp", "-", "c:/data", input=out, check=True)
        lighterd.ctl("cp", "c:/data/tmp/sub/page", str(tmp_path / "p"), check=True)
        assert (tmp_path / "p").read_text() == "page"


def test_cp_into_a_stopped_container_writes_to_every_directory_of_the_host(
    lighterd: Lighterd,
) -> None:
    """Also where its path begins as one of the kernel's does, but for what leads into those."""
    sources = [Path(f"/sys-lighter-test-{os.getpid()}"), Path(f"/proc-lighter-test-{os.getpid()}")]
    link = Path(f"/lighter-test-{os.getpid()}")
    try:
        for source in sources:
            source.mkdir()
        link.symlink_to("/sys/kernel")
        flags = ("-v", f"{sources[0]}:/a", "-v", f"{sources[1]}:/b", "-v", f"{link}:/c")
        in_state(lighterd, "stopped", *flags)
        lighterd.ctl("tasks", "delete", "c", check=True)
        for place in ("/a", "/b", "/c"):
            lighterd.ctl("cp", "/etc/hostname", f"c:{place}/copied", check=True)
        assert [os.listdir(source) for source in sources] == [["copied"]] * 2
    finally:
        link.unlink(missing_ok=True)
        for source in sources:
            for file in source.iterdir():
                file.unlink()
            source.rmdir()


def test_cp_says_what_cannot_be(lighterd: Lighterd, tmp_path: Path) -> None:
    in_state(lighterd, "running", "--read-only", "--mount", "type=tmpfs,dst=/data")
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    with lighterd.client() as client:
        pid = client.call("tasks", "get", id="c", exec_id="")["task"]["pid"]
    os.mknod(f"/proc/{pid}/root/data/socket", 0o600 | stat.S_IFSOCK)
    for args, words in (
        ((f"{tmp_path}/file", "c:/file"), "Read-only file system"),
        (("c:/absent", str(tmp_path)), "find '/absent' in c: there is no such file"),
        ((f"{tmp_path}/absent", "c:/data"), "No such file"),
        ((f"{tmp_path}/file", "c:/absent/x"), "there is no directory /absent"),
        ((f"{tmp_path}/dir", "c:/data/file"), "it is no directory"),
        (("c:/data", f"{tmp_path}/file"), "it is no directory"),
        (("c:/data/file", f"{tmp_path}/absent/"), "there is no such directory"),
        (("absent:/x", str(tmp_path)), "there is none in namespace default"),
        (("c:/dev/null", str(tmp_path)), "it is a device"),
        (("c:/data/socket", str(tmp_path)), "it is a socket"),
        (("c:/data/socket", "-"), "it is a socket"),
        (("/dev/null", "c:/data"), "it is a device"),
        ((str(lighterd.address), "c:/data"), "it is a socket"),
    ):
        refused = lighterd.ctl("cp", *args)
        said = refused.stderr.decode()
        assert refused.returncode == 1 and words in said and said.count("\n") == 1, (args, said)
    limited = ("prlimit", "--fsize=4096", *lighterd.ctl_argv("cp", "c:/bin/busybox", str(tmp_path)))
    full = subprocess.run(limited, capture_output=True, text=True)
    assert (full.returncode, full.stderr) == (1, "ctl: unpack 'busybox': File too large\n")
    for wrong in (("a", "b"), ("c:/a", "c:/b")):
        assert lighterd.ctl("cp", *wrong).returncode == 2


def test_cp_reads_the_files_of_the_kernel_that_tell_no_size(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    in_state(lighterd, "running")
    inside = lighterd.ctl("exec", "c", "cat", "/proc/1/limits", check=True).stdout
    lighterd.ctl("cp", "c:/proc/1/limits", str(tmp_path), check=True)
    assert (tmp_path / "limits").read_bytes() == inside
    lighterd.ctl("cp", "c:/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", str(tmp_path / "x"),
                 check=True)  # fmt: skip
    huge = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_bytes()
    assert (tmp_path / "x").read_bytes() == huge, "its size is said to be a page"
    lighterd.ctl("exec", "c", "sh", "-c", "truncate -s 3000 /data/sparse; : >/data/empty",
                 check=True)  # fmt: skip
    lighterd.ctl("cp", "c:/data", str(tmp_path), check=True)
    assert (tmp_path / "data/sparse").read_bytes() == bytes(3000)
    assert (tmp_path / "data/empty").read_bytes() == b""
    lighterd.ctl("exec", "c", "test", "-e", "/proc/1/mem", check=True)
    refused = lighterd.ctl("cp", "c:/proc/1/mem", str(tmp_path))
    assert refused.returncode == 1 and b"ctl: read 'mem'" in refused.stderr, refused


def test_cp_puts_nothing_in_the_place_of_a_special_file(lighterd: Lighterd, tmp_path: Path) -> None:
    in_state(lighterd, "running")
    null = tmp_path / "null"
    os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "data").mkdir()
    os.mknod(tmp_path / "data/file", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(fifo := tmp_path / "fifo")
    (tmp_path / "to-null").symlink_to(null)
    for target in (null, fifo, tmp_path / "to-null"):
        refused = lighterd.ctl("cp", "c:/data/file", str(target))
        assert refused.returncode == 1 and b"it is a device" in refused.stderr, target
    refused = lighterd.ctl("cp", "c:/data", str(tmp_path))
    assert refused.returncode == 1 and b"a special file is there" in refused.stderr
    for device in (null, tmp_path / "data/file"):
        assert stat.S_ISCHR(device.stat().st_mode)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_hostile_container_swaps_links_while_it_is_copied(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    """SEC-14: directories become links to the host's and back, all the time: what is read is only
    its own, and what is written stays in it."""
    canary = lighterd.base / "share"
    canary.mkdir()
    (canary / "secret").write_text("secret of the host")
    deep = str(canary)
    script = f"""
mkdir -p /w{deep} /w/real/sub; echo mine >/w/real/sub/secret; cd /w
i=0; while [ $i -lt 200 ]; do echo x >/w/real/f$i; i=$((i+1)); done
touch /ready
while :; do
  mv real kept && ln -s {deep} real && rm real && mv kept real
  rm -rf real/sub; ln -s {deep} real/sub; rm real/sub; mkdir real/sub; echo mine >real/sub/secret
done
"""
    lighterd.ctl("run", "-d", "--name", "c", REFERENCE, "sh", "-c", script, check=True)
    await_that(lambda: lighterd.ctl("exec", "c", "test", "-e", "/ready").returncode == 0, 20, "on")
    payload = tmp_path / "sub"
    payload.mkdir()
    for number in range(50):
        (payload / f"planted{number}").write_text("planted")
    (payload / "secret").write_text("planted")
    copied = written = 0
    for turn in range(12):
        out = tmp_path / f"out{turn}"
        out.mkdir()
        done = lighterd.ctl("cp", "c:/w/real", str(out))
        copied += done.returncode == 0
        assert b"Traceback" not in done.stderr
        for path in out.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert path.read_text() in ("mine\n", "x\n", "planted", ""), path
        done = lighterd.ctl("cp", str(payload), "c:/w/real")
        written += done.returncode == 0
    assert copied and written, "some copies must get through for this to mean anything"
    assert sorted(os.listdir(canary)) == ["secret"]
    assert (canary / "secret").read_text() == "secret of the host"


def test_a_container_is_not_started_while_it_is_written_to(lighterd: Lighterd) -> None:
    in_state(lighterd, "stopped")
    lighterd.ctl("tasks", "delete", "c", check=True)
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        lighterd.ctl_argv("cp", "-", "c:/data"), stdin=read_end, stderr=subprocess.PIPE
    ) as copying:
        os.close(read_end)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("late"))
        os.write(write_end, archive.getvalue()[:512])
        await_worker(lighterd)
        refused = lighterd.ctl("tasks", "start", "-d", "c")
        assert refused.returncode == 1 and b"files are being copied into it" in refused.stderr
        refused = lighterd.ctl("rename", "c", "d")
        assert b"rename container c: files are being copied into it" in refused.stderr
        os.write(write_end, archive.getvalue()[512:])
        os.close(write_end)
        assert copying.wait(20) == 0
    lighterd.ctl("tasks", "start", "-d", "c", check=True)


@pytest.mark.parametrize("verb", [("tasks", "start", "-d"), ("start",)])
def test_what_removes_itself_stays_while_it_is_written_to(
    lighterd: Lighterd, busybox: str, verb: tuple[str, ...]
) -> None:
    """A start is refused meanwhile, which is no end of the container that takes it away."""
    lighterd.ctl("create", "--rm", "--name", "c", busybox, "cat", "/late", check=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("late"))
    with subprocess.Popen(lighterd.ctl_argv("cp", "-", "c:/"), stdin=subprocess.PIPE) as copying:
        assert copying.stdin is not None
        copying.stdin.write(archive.getvalue()[:512])
        copying.stdin.flush()
        await_worker(lighterd)
        refused = lighterd.ctl(*verb, "c")
        assert b"files are being copied into it" in refused.stderr
        copying.stdin.write(archive.getvalue()[512:])
        copying.stdin.close()
        assert copying.wait(20) == 0
    assert lighterd.ctl("start", "-a", "c").returncode == 0


def test_a_worker_has_ended_before_what_it_wrote_is_let_go(lighterd: Lighterd) -> None:
    """One that is held up in the middle keeps its mount of the container's upper directory."""
    in_state(lighterd, "stopped")
    lighterd.ctl("tasks", "delete", "c", check=True)
    read_end, write_end = os.pipe()
    with subprocess.Popen(lighterd.ctl_argv("cp", "-", "c:/data"), stdin=read_end) as copying:
        os.close(read_end)
        worker = 0
        try:
            os.write(write_end, tarfile.TarInfo("late").tobuf())
            worker = await_worker(lighterd)
            hold_still(worker)
            copying.kill()
            copying.wait(20)
            await_that(
                lambda: lighterd.ctl("tasks", "start", "-d", "c").returncode == 0, 20, "it starts"
            )
            assert worker not in workers(lighterd)
        finally:
            copying.kill()
            os.close(write_end)
            if worker in workers(lighterd):
                os.kill(worker, signal.SIGKILL)


def test_a_copy_that_is_given_up_leaves_no_worker(lighterd: Lighterd) -> None:
    """Even one that waits for a reader who has the pipe and never reads."""
    in_state(lighterd, "running")
    lighterd.ctl("exec", "c", "sh", "-c", "dd if=/dev/zero of=/data/big bs=1M count=20 2>/dev/null",
                 check=True)  # fmt: skip
    with subprocess.Popen(
        lighterd.ctl_argv("cp", "c:/data", "-"), stdout=subprocess.PIPE
    ) as copying:
        assert copying.stdout is not None and copying.stdout.read(512)
        copying.send_signal(signal.SIGKILL)
        copying.wait(20)
        await_that(lambda: not workers(lighterd), 20, "the worker has gone")


def test_diff_lists_what_was_added_changed_and_deleted(lighterd: Lighterd) -> None:
    script = "echo >/etc/new; chmod 700 /etc/group; rm /etc/hosts; mkdir -p /a/b; touch /a/b/c"
    lighterd.ctl("run", REFERENCE, "c", "sh", "-c", script, check=True)
    lines = lighterd.ctl("diff", "c", check=True).stdout.decode().splitlines()
    assert {"C /etc", "A /etc/new", "C /etc/group", "D /etc/hosts"} <= set(lines)
    assert {"A /a", "A /a/b", "A /a/b/c"} <= set(lines)
    assert not [line for line in lines if "passwd" in line or "busybox" in line]


def test_a_busy_container_and_a_deep_one_are_compared_and_copied(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    """800 directories in each other, and files that come and go all the time."""
    script = """
mkdir /deep /busy; cd /deep; i=0
while [ $i -lt 800 ]; do mkdir d; cd -P d; i=$((i+1)); done
echo bottom >file; touch /ready; cd /busy
while :; do i=0; while [ $i -lt 300 ]; do mkdir d$i; echo >d$i/f; i=$((i+1)); done; rm -r d*; done
"""
    lighterd.ctl("run", "-d", "--name", "c", REFERENCE, "sh", "-c", script, check=True)
    await_that(lambda: lighterd.ctl("exec", "c", "test", "-e", "/ready").returncode == 0, 20, "on")
    bottom = "deep/" + "d/" * 800 + "file"
    for _ in range(5):
        assert f"A /{bottom}\n" in lighterd.ctl("diff", "c", check=True).stdout.decode()
    for verb in (("cp", "c:/deep", "-"), ("export", "c")):
        archive = lighterd.ctl(*verb, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert bottom in tar.getnames(), verb
    lighterd.ctl("commit", "c", "deep:1", check=True)
    lighterd.ctl("rmi", "deep:1", check=True)


def test_set_id_bits_come_to_no_special_file(lighterd: Lighterd, tmp_path: Path) -> None:
    """They are set by name, and the container may have put a program there by then."""
    in_state(lighterd, "running")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        fifo = tarfile.TarInfo("fifo")
        fifo.type, fifo.mode = tarfile.FIFOTYPE, 0o6755
        tar.addfile(fifo)
    lighterd.ctl("cp", "-", "c:/data", input=(tmp_path / "t.tar").read_bytes(), check=True)
    shown = lighterd.ctl("exec", "c", "stat", "-c", "%a %F", "/data/fifo", check=True).stdout
    assert shown == b"755 fifo\n"


def test_export_is_the_root_without_its_mounts(lighterd: Lighterd, tmp_path: Path) -> None:
    in_state(lighterd, "running")
    (labelled,) = lighterd.root.glob("snapshots/overlayfs/*/fs/data/deep/inner")
    for name in ("user.a", "security.selinux", "trusted.x"):
        os.setxattr(labelled, name, b"1")
    archive = lighterd.ctl("export", "c", check=True).stdout
    lighterd.ctl("export", "-o", str(tmp_path / "c.tar"), "c", check=True)
    for source in (io.BytesIO(archive), (tmp_path / "c.tar").open("rb")):
        with source, tarfile.open(fileobj=source) as tar:
            names = set(tar.getnames())
            assert {"data/deep/inner", "bin/busybox", "v", "proc"} <= names
            assert not {"v/kept", "proc/1"} & names
            inner = tar.extractfile("data/deep/inner")
            assert inner is not None and inner.read() == b"two\n"
            # What only this host can use stays here.
            attributes = [
                key for key in tar.getmember("data/deep/inner").pax_headers if "xattr" in key
            ]
            assert attributes == ["SCHILY.xattr.user.a"]


def test_commit_upon_an_image_of_no_layers(lighterd: Lighterd, tmp_path: Path) -> None:
    """Its manifest has null for a list of none, as Go writes it."""
    layout = Layout()
    manifest = json.loads(layout.blobs.pop(layout.image([])["digest"]))
    empty = layout.add(manifest["mediaType"], as_json({**manifest, "layers": None}))
    layout.list(empty, name="docker.io/library/nothing:1")
    (tmp_path / "nothing.tar").write_bytes(layout.archive())
    (tmp_path / "file").write_text("one\n")
    lighterd.ctl("images", "import", str(tmp_path / "nothing.tar"), check=True)
    lighterd.ctl("containers", "create", "nothing:1", "c", "/file", check=True)
    lighterd.ctl("cp", str(tmp_path / "file"), "c:/file", check=True)
    lighterd.ctl("commit", "c", "something:1", check=True)
    lighterd.ctl("rm", "c", check=True)
    lighterd.ctl("containers", "create", "something:1", "c", "/file", check=True)
    lighterd.ctl("cp", "c:/file", str(tmp_path / "back"), check=True)
    assert (tmp_path / "back").read_text() == "one\n"
    lighterd.ctl("rm", "c", check=True)
    lighterd.ctl("rmi", "something:1", "nothing:1", check=True)


def test_commit_makes_an_image_that_runs_and_travels(lighterd: Lighterd, tmp_path: Path) -> None:
    in_state(lighterd, "running")
    lighterd.ctl("exec", "c", "rm", "/etc/hosts", check=True)
    changes = ('CMD ["cat", "/data/file"]', "ENV A=1 B=2", "LABEL kind=made", "EXPOSE 80")
    changes += ("WORKDIR /data", "STOPSIGNAL SIGRTMIN+3")  # which systemd's images have
    words = [word for change in changes for word in ("-c", change)]
    words += ["-a", "Ada", "-m", "a file more"]
    digest = lighterd.ctl("commit", *words, "c", "site:2", check=True).stdout.decode().strip()
    assert digest.startswith("sha256:")
    with lighterd.client() as client:
        (task,) = client.call("tasks", "list")["tasks"]
        assert task["status"] == "running", "it was frozen for a moment only"
        shown = client.call("images", "get", name="site:2")
    config = shown["config"]
    assert config["author"] == "Ada" and config["history"][-1]["comment"] == "a file more"
    assert config["config"]["Labels"] == {"kind": "made"}
    assert config["config"]["ExposedPorts"] == {"80/tcp": {}}
    assert len(config["rootfs"]["diff_ids"]) == len(shown["manifest"]["layers"]) == 2
    run = ("run", "--rm", "--name", "again", "site:2")
    assert lighterd.ctl(*run, check=True).stdout == b"one\n"
    script = "pwd; echo $A$B; test -e /etc/hosts || echo deleted"
    assert lighterd.ctl(*run, "sh", "-c", script, check=True).stdout == b"/data\n12\ndeleted\n"
    lighterd.ctl("images", "export", str(tmp_path / "site.tar"), "site:2", check=True)
    assert lighterd.ctl("rmi", "site:2", check=True).stdout == b"site:2\n"
    assert lighterd.ctl("rmi", "site:2").returncode == 1
    lighterd.ctl("rmi", "-f", "site:2", check=True)
    lighterd.ctl("images", "import", str(tmp_path / "site.tar"), check=True)
    assert lighterd.ctl(*run, check=True).stdout == b"one\n"
    lighterd.ctl("rmi", "site:2", check=True)
    for change, word in (("RUN x", "RUN x"), ("ENV", "ENV"), ('CMD ["a"', "CMD")):
        refused = lighterd.ctl("commit", "-c", change, "c", "bad")
        assert refused.returncode == 1 and refused.stderr.count(b"\n") == 1, word
    assert lighterd.ctl("images", "ls", "-q", check=True).stdout.decode().split() == [REFERENCE]


def test_a_manager_killed_in_a_commit_leaves_nothing_frozen(lighterd: Lighterd) -> None:
    in_state(lighterd, "running")
    try:
        for point in ("freeze.frozen", "commit.layer", "commit.adopted"):
            lighterd.restart(FAULT=f"{point}:abort")
            assert lighterd.ctl("commit", "c", "cut:1").returncode != 0
            assert lighterd.process is not None
            lighterd.process.wait(20)
            lighterd.start()
            await_that(lambda: _status(lighterd) == "running", 20, f"{point}: thawed")
        lighterd.ctl("pause", "c", check=True)
        lighterd.ctl("commit", "c", "cut:1", check=True)
        assert _status(lighterd) == "paused", "what a user paused stays so"
        lighterd.ctl("rmi", "cut:1", check=True)
    finally:
        lighterd.restart()


def test_what_a_commit_froze_is_thawed_when_its_shim_can_be_reached_again(
    lighterd: Lighterd,
) -> None:
    """The shim is stopped in the middle of a commit, and nobody starts another manager."""
    in_state(lighterd, "running")
    lighterd.restart(FAULT="commit.layer:stop")
    (shim,) = lighterd.shims()
    try:
        with subprocess.Popen(lighterd.ctl_argv("commit", "c", "half:1")) as commit:
            await_that(lambda: process_state(lighterd.pid) == "T", 20, "the manager stands")
            hold_still(shim)
            os.kill(lighterd.pid, signal.SIGCONT)
            assert commit.wait(30) == 0
        os.kill(shim, signal.SIGCONT)
        await_that(lambda: _status(lighterd) == "running", 30, "it is thawed")
    finally:
        os.kill(shim, signal.SIGCONT)
        lighterd.restart()
    lighterd.ctl("rmi", "half:1", check=True)


def test_a_commit_is_not_thawed_by_hand(lighterd: Lighterd) -> None:
    """Its file is large enough for the question to come in time."""
    in_state(lighterd, "running")
    make = "dd if=/dev/urandom of=/data/big bs=1M count=64"
    lighterd.ctl("exec", "c", "sh", "-c", make, check=True)
    commit = ("commit", "c", "still:1")
    with subprocess.Popen(lighterd.ctl_argv(*commit), stdout=subprocess.DEVNULL) as committing:
        await_that(
            lambda: _status(lighterd) == "paused" or committing.poll() is not None,
            20,
            "it is frozen",
        )
        refused = lighterd.ctl("resume", "c")
        if committing.poll() is None:
            assert b"resume task c: it is held still" in refused.stderr
        assert committing.wait(60) == 0
    assert _status(lighterd) == "running"
    lighterd.ctl("rmi", "still:1", check=True)


def test_nothing_is_copied_into_a_place_that_is_read_only_below_too(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "file").write_text("x")
    mount = f"type=bind,src={tmp_path}/host,dst=/home,options=rbind:rro"
    lighterd.ctl("create", "--name", "c", "--mount", mount, REFERENCE, "true", check=True)
    refused = lighterd.ctl("cp", f"{tmp_path}/file", "c:/home/")
    assert refused.returncode == 1 and b"Read-only file system" in refused.stderr
    assert list((tmp_path / "host").iterdir()) == []
    shown = lighterd.ctl("inspect", "-f", "{{(index .Mounts 0).RW}}", "c", check=True)
    assert shown.stdout == b"false\n"


def _status(lighterd: Lighterd) -> str:
    with lighterd.client() as client:
        (task,) = client.call("tasks", "list")["tasks"]
    return str(task["status"])


def test_parallel_copies_of_one_container(lighterd: Lighterd, tmp_path: Path) -> None:
    in_state(lighterd, "running")
    results: list[int] = []

    def copy(number: int) -> None:
        results.append(lighterd.ctl("cp", "c:/data", str(tmp_path / f"d{number}")).returncode)

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 6
    assert json.dumps(sorted(os.listdir(tmp_path))) == json.dumps([f"d{n}" for n in range(6)])


def test_a_container_with_mapped_ids_owns_what_comes_to_it(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    maps = ("--uidmap", "0:100000:2000", "--gidmap", "0:200000:2000")
    lighterd.base.chmod(0o711)  # mapped ids have to pass it
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 5, 6)
    lighterd.ctl("run", "-d", *maps, "-v", "v:/v", REFERENCE, "c", "sleep", "1000", check=True)
    lighterd.ctl("cp", f"{tmp_path}/file", "c:/v/roots", check=True)
    lighterd.ctl("cp", "-a", f"{tmp_path}/file", "c:/v/kept", check=True)
    seen = lighterd.ctl("exec", "c", "stat", "-c", "%u:%g", "/v", "/v/roots", "/v/kept", check=True)
    assert seen.stdout.decode().split() == ["0:0", "0:0", "5:6"]
    os.chown(tmp_path / "file", 5000, 6)
    refused = lighterd.ctl("cp", "-a", f"{tmp_path}/file", "c:/v/far")
    assert refused.returncode == 1 and b"the container has no id 5000" in refused.stderr
    refused = lighterd.ctl("commit", "c", "mapped")
    assert refused.returncode == 1 and b"its ids are mapped" in refused.stderr
