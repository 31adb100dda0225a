"""Rows of published weaknesses that need the whole manager: sockets, modes, locks, identity.

SEC-37, 38, 41, 42, 43, 44, 47, 64, 65, 66, 71, 72, 73, 76, 77: each test is named after its row.
"""

import contextlib
import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from lighter.proto import codec, errors
from lighter.proto.paths import cgroup_path
from tests import lives
from tests.harness import BIN, Lighterd, await_that
from tests.processes import plain_oom_score
from tests.unit.daemon.intruder import Intruder
from tests.variants import tar_of, variant

pytestmark = pytest.mark.root
NOBODY = 65534


def import_bytes(lighterd: Lighterd, archive: bytes) -> str:
    path = lighterd.base / "archive.tar"
    path.write_bytes(archive)
    lighterd.ctl("images", "import", str(path), check=True)
    with lighterd.client() as client:
        names = [row["name"] for row in client.call("images", "list")["images"]]
    return str(next(name for name in names if "variant" in name))


def init_pid(lighterd: Lighterd, container: str) -> int:
    with lighterd.client() as client:
        return int(client.call("tasks", "get", id=container)["task"]["pid"])


# -- SEC-37: a number that overflows, or that is looked up as a name

SPELLINGS = ("2147483648", "4294967296", str(10**30), "-1", "0_0", " 0", "+0", "٠", "0x0", "1e0")


def test_sec37_no_spelling_of_a_user_becomes_root(lighterd: Lighterd) -> None:
    rows = "".join(f"{spelling}:x:0:0::/:/bin/sh\n" for spelling in SPELLINGS)
    passwd = {"etc/passwd": (rows + "user:x:1000:1000::/:/bin/sh\n").encode()}
    for spelling in (*SPELLINGS, "1000:4294967296", "1000:-1", "1000:0_0", "user:٠"):
        image = import_bytes(lighterd, variant(passwd, User=spelling))
        for flags in ((), ("-u", spelling)):
            done = lighterd.ctl("run", "--rm", *flags, image, "x", "id")
            assert done.returncode == 125, (spelling, flags, done)
            assert b"uid=0" not in done.stdout, (spelling, flags)
    done = lighterd.ctl("run", "--rm", "-u", "user", image, "x", "id", "-u")
    assert (done.returncode, done.stdout) == (0, b"1000\n"), done.stderr


# -- SEC-38, SEC-41: groups and capabilities as the kernel sees them

OF_ITSELF = ("grep", "-E", "^(Groups|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs):", "/proc/self/status")


def status_of(output: bytes) -> dict[str, str]:
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in output.decode().splitlines())
    }


def test_sec38_a_group_that_is_denied_is_denied(lighterd: Lighterd, busybox: str) -> None:
    script = "echo secret >/f; chown 0:1000 /f; chmod 0604 /f; exec sleep 1000"
    lighterd.ctl("run", "-d", busybox, "x", "sh", "-c", script, check=True)
    await_that(lambda: lighterd.ctl("exec", "x", "test", "-s", "/f").returncode == 0, 20, "/f")
    mine = lighterd.ctl("exec", "-u", "1000:1000", "x", "cat", "/f")
    assert mine.returncode != 0 and b"Permission denied" in mine.stderr, mine
    # Of another group, "others" decides: the file is readable as such.
    assert lighterd.ctl("exec", "-u", "1000:2000", "x", "cat", "/f").stdout == b"secret\n"
    groups = status_of(lighterd.ctl("exec", "-u", "1000:1000", "x", *OF_ITSELF).stdout)["Groups"]
    # The image's /etc/group puts user 1000 into 2000 as well.
    assert groups.split() == ["1000", "2000"]
    run = lighterd.ctl("run", "--rm", "-u", "1000:1000", busybox, "y", *OF_ITSELF)
    assert status_of(run.stdout)["Groups"].split() == ["1000", "2000"]


def test_sec41_no_capability_is_inherited_and_a_user_has_none(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl("run", "-d", busybox, "x", "sleep", "1000", check=True)
    for user, all_of_it in (("0", False), ("1000:1000", True)):
        runs = (
            lighterd.ctl("run", "--rm", "-u", user, busybox, "y", *OF_ITSELF),
            lighterd.ctl("exec", "-u", user, "x", *OF_ITSELF),
        )
        for done in runs:
            status = status_of(done.stdout)
            assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0, (user, status)
            assert (int(status["CapEff"], 16) == 0) is all_of_it, (user, status)
            assert status["NoNewPrivs"] == "1"


# -- SEC-42: one container's environment in another


@pytest.mark.parametrize(
    "count", [20, pytest.param(50, marks=[pytest.mark.soak])], ids="{} at once".format
)
def test_sec42_concurrent_creates_have_exactly_their_own_environment(
    lighterd: Lighterd, busybox: str, count: int
) -> None:
    def create(number: int) -> None:
        name = f"c{number}"
        own = [f"OWN_{number}=1", f"SHARED={number}"]
        with lighterd.client() as client:
            client.call(
                *("containers", "create"), id=name, image=busybox, env=own, args=["sleep", "100"]
            )
            client.call("tasks", "create", id=name, timeout_s=60)
            client.call("tasks", "start", id=name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(count)))
    for number in range(count):
        init = Path(f"/proc/{init_pid(lighterd, f'c{number}')}")
        # A start is answered just before init becomes the program.
        await_that(lambda of=init: (of / "comm").read_text() == "sleep\n", 20, "it is the program")
        environ = (init / "environ").read_bytes()
        seen = {item.decode() for item in environ.split(b"\0") if item}
        wanted = {f"OWN_{number}=1", f"SHARED={number}"}
        allowed = {"PATH", "HOME"}
        assert wanted <= seen
        assert {item.partition("=")[0] for item in seen - wanted} <= allowed, seen


# -- SEC-43, SEC-44: what an image may not say


def test_sec43_an_entry_without_a_sign_takes_nothing_from_the_manager(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    instance = make_lighterd().start(SECRET="hidden")
    image = import_bytes(instance, variant(Env=["SECRET", "*", "=x", "A", "B=1"]))
    done = instance.ctl("run", "--rm", image, "x", "env", check=True)
    assert b"hidden" not in done.stdout and b"B=1" in done.stdout
    given = subprocess.run(
        instance.ctl_argv("run", "--rm", "-e", "GIVEN", image, "x", "env"),
        env={**os.environ, "OTHER": "hidden"},
        capture_output=True,
    )
    assert b"hidden" not in given.stdout


def test_sec44_labels_of_an_image_never_become_reserved_ones(
    lighterd: Lighterd, busybox: str
) -> None:
    reserved = {
        "containerd.io/restart.status": "running",
        "containerd.io/restart.loguri": "binary:///bin/true",
        "io.cri-containerd.kind": "container",
        "org.example.plain": "kept",
    }
    image = import_bytes(lighterd, variant(Labels=reserved))
    with lighterd.client() as client:
        made = client.call("containers", "create", id="x", image=image, args=["true"])
        labels = client.call("containers", "get", id="x")["container"]["labels"]
    assert labels == {"org.example.plain": "kept"}
    assert made["warnings"]


# -- SEC-47: a working directory that leads out


def test_sec47_a_working_directory_through_an_open_file_is_refused(
    lighterd: Lighterd, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o755)
    before = canary.lstat()
    for number in (3, 7, 20):
        image = import_bytes(lighterd, variant(WorkingDir=f"/proc/self/fd/{number}"))
        done = lighterd.ctl("run", "--rm", image, "x", "pwd")
        assert done.returncode == 125 and b"working directory" in done.stderr, done
    link = tarfile.TarInfo("out")
    link.type, link.linkname = tarfile.SYMTYPE, str(canary)
    image = import_bytes(lighterd, variant(layer=tar_of(link), WorkingDir="/out/below"))
    lighterd.ctl("run", "--rm", image, "x", "sh", "-c", "touch here; ls -l /proc/self/fd")
    after = canary.lstat()
    assert (after.st_mtime_ns, after.st_mode, after.st_uid) == (
        *(before.st_mtime_ns, before.st_mode, before.st_uid),
    )
    lighterd.ctl("run", "-d", lighterd.import_busybox(), "live", "sleep", "100", check=True)
    for cwd in ("/proc/self/fd/7", "/proc/1/root", "/dev/fd/3"):
        refused = lighterd.ctl("exec", "--cwd", cwd, "live", "pwd")
        assert refused.returncode == 125, (cwd, refused)
        assert b"check working directory" in refused.stderr, (cwd, refused)


# -- SEC-64: sockets that a container on the host's network could reach


def test_sec64_no_socket_of_ours_is_abstract(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "-d", "--net-host", busybox, "x", "sleep", "1000", check=True)
    ours = {lighterd.pid, *lighterd.shims()}
    ours |= {child.pid for child in psutil.Process(lighterd.pid).children(recursive=True)}
    inodes = set()
    for pid in ours:
        with contextlib.suppress(FileNotFoundError):  # a child that has ended
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    listed = lighterd.ctl("exec", "x", "cat", "/proc/net/unix", check=True).stdout.decode()
    names = []
    for line in listed.splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if f"socket:[{fields[6]}]" in inodes and len(fields) == 8:
            names.append(fields[7])
    assert any(name == lighterd.address for name in names), "the list is that of the host"
    assert [name for name in names if name.startswith("@")] == []
    # What the list names is not there in the container.
    probe = "for name; do [ -e $name ] && echo found $name; done; true"
    paths = [name for name in names if name.startswith("/")]
    seen = lighterd.ctl("exec", "x", "sh", "-c", probe, "sh", *paths, check=True)
    assert seen.stdout == b""


# -- SEC-65, SEC-66: files on the host

STAT_ALL = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for line in sys.stdin:
    path = line.rstrip("\\n")
    for act in (os.stat, os.listdir, lambda p: os.close(os.open(p, os.O_RDONLY))):
        try:
            act(path)
        except PermissionError:
            continue
        except (NotADirectoryError, FileNotFoundError, OSError):
            continue
        print(act.__name__, path)
"""


def reachable_by_nobody(paths: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", STAT_ALL],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def everything_below(*tops: Path) -> list[str]:
    return [
        os.path.join(parent, name)
        for top in tops
        for parent, directories, files in os.walk(top)
        for name in (*directories, *files)
    ]


def run_as_nobody(busybox: Path) -> bool:
    argv = [str(busybox), "true"]
    try:
        return subprocess.run(argv, user=NOBODY, group=NOBODY, extra_groups=[]).returncode == 0
    except PermissionError:
        return False


COPY = "cp /bin/busybox /busybox && chmod 4755 /busybox"


@pytest.mark.parametrize("mask", [0o000, 0o022], ids=oct)
def test_sec65_an_open_tree_is_closed_at_the_start(
    lighterd: Lighterd, busybox: str, mask: int
) -> None:
    lighterd.ctl("run", "-d", busybox, "x", "sleep", "1000", check=True)
    lighterd.ctl("exec", "x", "sh", "-c", COPY, check=True)
    lighterd.stop()
    os.chmod(lighterd.base, 0o755)
    for path in (
        *(str(lighterd.root), str(lighterd.state)),
        *everything_below(lighterd.root, lighterd.state),
    ):
        if not os.path.islink(path):
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o777)
    rootfs = next((lighterd.state / "tasks").glob("*/x/rootfs"))
    assert run_as_nobody(rootfs / "busybox"), "it was open"
    before = os.umask(mask)
    try:
        lighterd.start()
    finally:
        os.umask(before)
    modes = {
        lighterd.root: 0o700,
        lighterd.state: 0o711,
        lighterd.root / "content": 0o700,
        lighterd.root / "snapshots": 0o700,
        lighterd.root / "lighter.db": 0o600,
        lighterd.root / "lock": 0o600,
        lighterd.state / "lock": 0o600,
        lighterd.state / "tasks": 0o700,
        lighterd.state / "runc": 0o700,
        lighterd.state / "lighter.sock": 0o600,
        lighterd.state / "shims.sock": 0o600,
    }
    assert {path: oct(stat.S_IMODE(path.stat().st_mode)) for path in modes} == {
        path: oct(mode) for path, mode in modes.items()
    }
    assert (rootfs / "busybox").stat().st_mode & stat.S_ISUID
    below = [*everything_below(lighterd.root), *everything_below(lighterd.state / "tasks")]
    assert reachable_by_nobody([*below, str(rootfs / "busybox")]) == []
    assert not run_as_nobody(rootfs / "busybox")
    lighterd.ctl("run", "-d", busybox, "made-under-mask", "sleep", "100", check=True)
    assert reachable_by_nobody(everything_below(lighterd.root, lighterd.state / "tasks")) == []


def test_sec66_bind_never_removes_what_is_no_socket_and_a_second_manager_takes_nothing(
    lighterd: Lighterd,
) -> None:
    inode = os.stat(lighterd.address).st_ino
    second = subprocess.run(
        [BIN / "lighterd", "--root", lighterd.base / "other", "--state", lighterd.state],
        capture_output=True,
        timeout=30,
    )
    assert second.returncode == 1 and b"holds it" in second.stderr
    assert os.stat(lighterd.address).st_ino == inode
    assert lighterd.ctl("version").returncode == 0


CONNECT = """
import os, socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except PermissionError:
            continue
        print("connected", path)
"""


def as_nobody(argv: list[str], *groups: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        argv,
        user=NOBODY,
        group=NOBODY,
        extra_groups=groups,
        env={"PATH": os.environ["PATH"], "PYTHONSAFEPATH": "1", "HOME": "/"},
        capture_output=True,
        timeout=30,
    )


@pytest.mark.parametrize("group", ["", "daemon"])
def test_f76_another_user_is_refused_even_when_the_sockets_mode_was_changed(
    make_lighterd: Callable[..., Lighterd], group: str
) -> None:
    lighterd = make_lighterd(config=f'[plugins."io.lighter.v1"]\ngroup = "{group}"\n').start()
    os.chmod(lighterd.base, 0o755)
    sockets = [lighterd.address, str(lighterd.state / "shims.sock")]
    reached = as_nobody([sys.executable, "-I", "-c", CONNECT, *sockets])
    assert (reached.returncode, reached.stdout) == (0, b"")
    os.chmod(lighterd.address, 0o777)
    # Connected now, but the kernel says who it is.
    done = as_nobody(lighterd.ctl_argv("tasks", "ls"))
    assert done.returncode == 1
    assert done.stderr == f"ctl: connect: user {NOBODY} is not served\n".encode(), done.stderr
    assert lighterd.ctl("tasks", "ls").returncode == 0
    if group:
        os.chmod(lighterd.address, 0o660)
        member = as_nobody(lighterd.ctl_argv("tasks", "ls"), grp.getgrnam(group).gr_gid)
        assert member.returncode == 0, member.stderr


def test_a_file_that_a_caller_may_only_read_is_written_by_no_request(
    lighterd: Lighterd, busybox: str, tmp_path: Path
) -> None:
    """The manager opens it anew, as root: the caller's own right to it is what counts."""
    lighterd.ctl("snapshots", "prepare", "work", check=True)
    file = tmp_path / "file"
    file.write_bytes(b"as it was")
    with file.open("rb") as readable, lighterd.client() as client:
        target = f"/proc/{os.getpid()}/fd/{readable.fileno()}"
        with pytest.raises(errors.PermissionDenied, match="has it open for reading alone"):
            client.call("snapshots", "diff", key="work", lower="", target=target)
    assert file.read_bytes() == b"as it was"
    with file.open("ab") as writable, lighterd.client() as client:
        target = f"/proc/{os.getpid()}/fd/{writable.fileno()}"
        client.call("snapshots", "diff", key="work", lower="", target=target)
    written = file.read_bytes()
    assert written[:9] == b"as it was" and len(written) > 9
    lighterd.ctl("snapshots", "rm", "work", check=True)


def test_f76_another_user_is_no_shim_even_when_the_sockets_mode_was_changed(
    lighterd: Lighterd, busybox: str
) -> None:
    """It takes the routing id of a shim that lives: what that says is of no consequence, and the
    shim takes its place again.
    """
    lighterd.ctl("run", "-d", busybox, "x", "sleep", "1000", check=True)
    os.chmod(lighterd.base, 0o755)
    path = lighterd.state / "shims.sock"
    path.chmod(0o777)
    with lighterd.client() as client:
        (shim,) = client.call("system", "shims")["shims"]
        incarnation = shim["incarnation"]
        exit_ = {"container_id": "x", "exec_id": "", "pid": 1, "exit_status": 0, "exited_at": 1}
        said = [codec.Event(0, 1 << 40, "/tasks/exit", 1, {**exit_, "cause": ""})]
        away = {"namespace": "../..", "id": "r", "state": "running", "start": 1, "init_pid": 1}
        dropped = client.call("system", "health")["dropped"]
        for name, identity in (
            (incarnation, {**shim, "incarnation": incarnation}),
            (incarnation, None),
            ("f" * 16, {**away, "incarnation": "f" * 16}),
        ):
            with Intruder(str(path), identity, said, name.encode()):
                dropped += 1 + (identity is not None)
                await_that(
                    lambda least=dropped: client.call("system", "health")["dropped"] >= least,
                    20,
                    "hello and event are dropped",
                )
            await_that(lambda: lighterd.ctl("exec", "x", "true").returncode == 0, 20, "it is back")
        (row,) = client.call("tasks", "list")["tasks"]
        assert (row["id"], row["status"]) == ("x", "running")
    assert lighterd.ctl("kill", "x").returncode == 0
    assert lighterd.ctl("wait", "x", check=True).stdout == b"137\n"


# -- SEC-71, SEC-72: listeners, and names of programs


def test_sec71_nothing_listens_on_a_network(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "-d", "--net-host", busybox, "x", "sleep", "1000", check=True)
    family = [psutil.Process(lighterd.pid), *psutil.Process(lighterd.pid).children(recursive=True)]
    family += map(psutil.Process, lighterd.shims())
    assert len(family) > 2
    for process in family:
        assert process.net_connections(kind="inet") == [], process


def test_sec72_no_name_of_a_program_is_a_way_to_another(lighterd: Lighterd, busybox: str) -> None:
    """A runtime is a known name or an absolute path to what root alone may change."""
    ran = lighterd.base / "ran"
    script = lighterd.base / "runc"
    script.write_text(f"#!/bin/sh\necho run > {ran}\n")
    script.chmod(0o777)  # others could change it
    names = (
        *("../runc", f"..{script}", "io.containerd.runc.v2/../../runc", "runc/../runc", "./runc"),
        *(f"io.containerd.runc.v2\n{script}", str(script), f"{script}/", str(lighterd.base)),
    )
    for name in names:
        done = lighterd.ctl("run", "--rm", "--runtime", name, busybox, "x", "true")
        assert done.returncode == 125, (name, done)
        assert done.stderr.count(b"\n") == 1, (name, done)
    for name in ("../native", "native/../overlayfs", "/native", "native\n"):
        done = lighterd.ctl("run", "--rm", "--snapshotter", name, busybox, "x", "true")
        assert done.returncode == 125 and b"snapshotter" in done.stderr, (name, done)
    assert not ran.exists()


# -- SEC-73: ids and log paths


def test_sec73_a_log_is_not_read_through_a_link(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "-d", busybox, "x", "echo", "mine", check=True)
    with lighterd.client() as client:
        client.call("tasks", "wait", id="x", exec_id="")
    log = lighterd.root / "logs" / "default" / "x" / "0000000001.log"
    await_that(lambda: log.exists() and log.stat().st_size, 30, "the log is written")
    canary = lighterd.base / "canary"
    canary.write_bytes(log.read_bytes().replace(b"mine", b"evil"))
    log.unlink()
    log.symlink_to(canary)
    done = lighterd.ctl("logs", "x")
    assert b"evil" not in done.stdout
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done
    assert lighterd.ctl("version").returncode == 0


def test_sec73_a_log_is_not_written_through_a_link(lighterd: Lighterd, busybox: str) -> None:
    """Somebody who may write below the log's place gains nothing by a link in it."""
    canary = lighterd.base / "canary"
    canary.write_text("as it was")
    lighterd.ctl("c", "create", busybox, "x", "echo", "mine", check=True)
    place = lighterd.root / "logs" / "default" / "x"
    place.mkdir(parents=True)
    (place / "0000000001.log").symlink_to(canary)
    lighterd.ctl("tasks", "start", "-d", "x", check=True)
    assert lighterd.ctl("tasks", "wait", "x").stdout == b"0\n"
    lighterd.ctl("tasks", "delete", "x", check=True)
    assert canary.read_text() == "as it was"
    assert (place / "0000000001.log").is_symlink()


def test_sec73_names_are_checked_by_every_service(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "-d", busybox, "x", "sleep", "1000", check=True)
    stdio = {"stdin": "", "stdout": "", "stderr": "", "rows": 0, "cols": 0}
    with lighterd.client() as client:
        for name in ("..", ".", "a/b", "a" * 77, "a\0", "ü", "", "a\n", "-"):
            for method, body in (
                ("namespaces.create", {"name": name}),
                ("containers.create", {"id": name, "image": busybox}),
                ("containers.rename", {"id": "x", "name": name}),
                ("volumes.create", {"name": name, "labels": {}, "driver": "", "options": {}}),
                ("tasks.exec", {"id": "x", "exec_id": name, "args": ["true"], **stdio}),
            ):
                with pytest.raises(errors.InvalidArgument):
                    client.call(*method.split("."), **body)
            client.namespace = name
            for method in ("containers.list", "tasks.list", "images.list"):
                with pytest.raises(errors.InvalidArgument):
                    client.call(*method.split("."))
            client.namespace = "default"


# -- SEC-76, SEC-77


def test_sec76_the_shim_is_outside_the_containers_cgroup_and_dies_last(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl("run", "-d", busybox, "x", "sleep", "1000", check=True)
    (shim,) = lighterd.shims()
    pid = init_pid(lighterd, "x")
    path = cgroup_path(lighterd.instance, "default", "x")
    in_container = Path(f"/proc/{pid}/cgroup").read_text()
    of_shim = Path(f"/proc/{shim}/cgroup").read_text()
    assert path in in_container
    assert f"/lighter/{lighterd.instance}" not in of_shim
    score = {p: int(Path(f"/proc/{p}/oom_score_adj").read_text()) for p in (shim, pid)}
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert (score[shim], score[pid]) == (own, plain_oom_score())


def test_sec76_a_shim_has_the_managers_oom_score_and_a_container_its_own(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """What protects the manager protects its shims, and no container. Raising is allowed to all."""
    own = int(Path("/proc/self/oom_score_adj").read_text())
    lighterd = make_lighterd()
    raised = min(max(own, 0) + 100, 1000)
    lighterd.prefix = ["sh", "-c", f'echo {raised} >/proc/self/oom_score_adj; exec "$@"', "sh"]
    lighterd.start()
    image = lighterd.import_busybox()
    lighterd.ctl("run", "-d", image, "x", "sleep", "1000", check=True)
    (shim,) = lighterd.shims()
    container = init_pid(lighterd, "x")
    score = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (lighterd.pid, shim, container)
    ]
    plain = plain_oom_score()
    assert score == [raised, raised, plain]
    # A client of containerd's says nothing of it in the spec, unless it is told to.
    ctr = ("ctr", "--address", lighterd.grpc_address, "-n", "default")
    for words in (
        ("run", "-d", image, "y", "sleep", "1000"),
        ("tasks", "exec", "-d", "--exec-id", "e", "y", "sleep", "1000"),
    ):
        subprocess.run([*ctr, *words], check=True, timeout=60, stdin=subprocess.DEVNULL)
    with lighterd.client() as client:
        found = client.call("tasks", "pids", id="y")["processes"]
    scores = [Path(f"/proc/{row['pid']}/oom_score_adj").read_text() for row in found]
    assert scores == [f"{plain}\n"] * 2


def test_a_manager_that_is_aborted_leaves_no_core(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    """SEC-31: passwords would stand in it. Its shims still reach its pipes."""
    with_cores = ["sh", "-c", f'cd {tmp_path}; ulimit -c unlimited; exec "$@"', "sh"]
    subprocess.run([*with_cores, sys.executable, "-c", "import os; os.abort()"], check=False)
    control = list(tmp_path.iterdir())
    for core in control:
        core.unlink()
    elsewhere = Path("/proc/sys/kernel/core_pattern").read_text().startswith(("/", "|"))
    assert control or elsewhere, "what is not kept from it leaves one here"
    lighterd = make_lighterd()
    lighterd.prefix = with_cores
    lighterd.start()
    image = lighterd.import_busybox()
    health = ("--health-cmd", "echo well", "--health-interval", "1s")
    lighterd.ctl("run", "-d", *health, image, "x", "sleep", "1000", check=True)

    def is_healthy() -> bool:
        shown = json.loads(lighterd.ctl("inspect", "x", check=True).stdout)
        return '"healthy"' in json.dumps(shown)

    await_that(is_healthy, 30, "its check is well")
    os.kill(lighterd.pid, signal.SIGABRT)
    assert lighterd.process is not None
    assert lighterd.process.wait() == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []
    lighterd._await_spawner()
    lighterd.start()
    lighterd.ctl("rm", "-f", "x", check=True)


@pytest.mark.parametrize("may_trace", [True, False], ids=["all rights", "no CAP_SYS_PTRACE"])
def test_sec31_a_manager_cannot_be_dumped_from_its_first_steps_on(
    make_lighterd: Callable[..., Lighterd], may_trace: bool
) -> None:
    """What such a process has in /proc is of group 0, whatever its own is (proc(5))."""
    group = 4711
    lighterd = make_lighterd()
    lighterd.prefix = ["setpriv", "--regid", str(group), "--clear-groups"]
    if not may_trace:
        lighterd.prefix += ["--bounding-set", "-sys_ptrace"]
    lighterd.launch(FAULT="start.locked:stop")
    pid = lighterd.pid
    await_that(lambda: lives.process_state(pid) == "T", 20, "it has begun")
    own, shown = os.stat(f"/proc/{pid}").st_gid, os.stat(f"/proc/{pid}/environ").st_gid
    lighterd.cont()
    lighterd.wait_ready()
    assert (own, shown) == (group, 0 if may_trace else group)
    assert ("without CAP_SYS_PTRACE a core" in lighterd.log.read_text()) != may_trace


def test_sec77_a_secret_in_the_environment_is_in_no_argument_log_or_event(
    lighterd: Lighterd, busybox: str
) -> None:
    secret = "hunter2-" + os.urandom(8).hex()
    lighterd.ctl("run", "-d", "-e", f"SECRET={secret}", busybox, "x", "sleep", "1000", check=True)
    lighterd.ctl("exec", "-e", f"SECRET={secret}", "x", "true")
    lighterd.ctl("run", "--rm", "-e", f"SECRET={secret}", busybox, "y", "/no/such")
    assert secret not in lighterd.log.read_text()
    for process in psutil.process_iter(["cmdline"]):
        assert secret not in " ".join(process.info["cmdline"] or ()), process
    with lighterd.client() as client:
        events = list(client.stream("events", "subscribe", since=0, follow=False))
        assert events and secret not in json.dumps(events)
    holders = {}
    for path in everything_below(lighterd.state):
        mode = os.lstat(path)
        if not stat.S_ISREG(mode.st_mode) or "/rootfs/" in path:
            continue
        if secret.encode() in Path(path).read_bytes():
            holders[Path(path).name] = stat.S_IMODE(mode.st_mode)
    # What the runtime must read, by its owner alone; no log and no record beside it.
    assert holders == {"config.json": 0o600}


def test_sec64_the_peer_of_the_manager_is_a_path_socket(lighterd: Lighterd) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(lighterd.address)
        assert probe.getpeername() == lighterd.address
