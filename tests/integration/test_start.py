"""Starting lighterd: what it refuses and in which words, --daemon, stop, sockets, descriptors."""

import os
import re
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lighter.proto import errors
from tests import census
from tests.harness import BIN, Lighterd, await_that

LOADED = Path(__file__).parents[1] / "unit" / "daemon" / "loaded.txt"


class Place:
    """Directories for lighterds that are not expected to stay, known to the census."""

    def __init__(self, base: Path) -> None:
        self.base, self.root, self.state = base, base / "r", base / "s"

    def start(self, *args: str, **options: object) -> "subprocess.CompletedProcess[str]":
        argv = [str(BIN / "lighterd"), "--root", str(self.root), "--state", str(self.state), *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, **options)  # type: ignore[call-overload,no-any-return]

    def refused(self, words: str, *args: str, code: int = 1, **options: object) -> None:
        done = self.start(*args, **options)
        last = done.stderr.rstrip("\n").rpartition("\n")[2]
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr, done.stderr
        assert last.startswith("lighterd: ") and words in last, done.stderr


@pytest.fixture
def place(tmp_path: Path, owners: census.Owners) -> Iterator[Place]:
    owners.dirs.add(str(tmp_path / "s"))
    made = Place(tmp_path)
    made.root.mkdir()
    made.state.mkdir()
    yield made
    owners.dirs.discard(str(tmp_path / "s"))


@pytest.fixture
def daemon(place: Place) -> Iterator[Place]:
    """For tests that start one with --daemon; it is stopped after them."""
    yield place
    pid_file = place.state / "lighterd.pid"
    if pid_file.exists():
        process = psutil.Process(int(pid_file.read_text()))
        process.terminate()
        process.wait(20)


def test_configurations_that_do_not_start(place: Place) -> None:
    file = place.base / "config.toml"
    for data, words in (
        (b"root = 5", "root is 5, expected text"),
        (b"a = 1\nb = ", "config.toml:2: "),
        (b"version = 99", "version is 99"),
        (b"x = '\xff'", "is not UTF-8"),
        (b'[plugins."io.lighter.v1"]\ngroup = "no-such-group"', "there is no such group"),
        (b"#" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ):
        file.write_bytes(data)
        place.refused(words, "-c", str(file))
    place.refused("No such file", "-c", str(place.base / "missing"))
    place.refused("no regular file", "-c", str(place.base))
    file.write_text("root = 5\n[debug]\nlevel = 3")
    place.refused("expected text", "-c", str(file), "config", "check")
    usage = place.start("--log-level", "loud")
    assert usage.returncode == 2 and "not one of" in usage.stderr


def test_a_start_that_fails_by_a_mistake_of_ours_is_one_line_too(place: Place) -> None:
    environ = {**os.environ, "FAULT": "start.locked:bug"}
    place.refused("run manager: RuntimeError: ", env=environ)


def test_one_that_cannot_start_is_not_started_again_at_once(place: Place) -> None:
    """A service manager has no limit here: who fails under one takes his time about it."""
    file = place.base / "config.toml"
    file.write_text("root = 5\n")
    begun = time.monotonic()
    environ = {**os.environ, "NOTIFY_SOCKET": str(place.base / "nobody")}
    place.refused("expected text", "-c", str(file), env=environ)
    assert time.monotonic() - begun >= 1.0


def test_unknown_keys_warn_and_a_dump_is_the_same_configuration(place: Place) -> None:
    file = place.base / "config.toml"
    file.write_text('version = 3\nfoo = 1\n[plugins."io.lighter.v1".log]\nmax_size = 5\n')
    first = place.start("-c", str(file), "config", "dump")
    assert first.returncode == 0 and "key foo is not known" in first.stderr
    file.write_text(first.stdout)
    second = place.start("-c", str(file), "config", "dump")
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert "max_size = 5" in second.stdout and f'root = "{place.root}"' in second.stdout
    file.write_text(place.start("config", "default").stdout)
    checked = place.start("-c", str(file), "config", "check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_places_that_do_not_serve(place: Place) -> None:
    (place.root / "io.containerd.content.v1.content").mkdir()
    place.refused("holds containerd's data")
    assert "docs/migrate-from-containerd.md" in place.start().stderr
    (place.root / "io.containerd.content.v1.content").rmdir()
    place.refused("it is empty", "--root", "")
    place.refused("it is the root too", "--state", str(place.root))
    (place.root / "lock").mkdir()
    place.refused(f"lock {place.root}/lock: ")
    (place.root / "lock").rmdir()
    (place.root / "content").symlink_to("/etc")
    before = stat.S_IMODE(os.stat("/etc").st_mode)
    place.refused("make directory")
    assert stat.S_IMODE(os.stat("/etc").st_mode) == before
    (place.root / "content").unlink()
    long = place.base / ("s" * 100)
    place.refused("at most 107", "--state", str(long))
    (place.root / "lighter.db").mkdir()
    place.refused(f"open database {place.root}/lighter.db: ")


def test_a_file_in_a_sockets_place_is_kept(place: Place) -> None:
    for name in ("lighter.sock", "shims.sock"):
        path = place.state / name
        path.unlink(missing_ok=True)  # a socket of the run before
        path.write_text("precious")
        place.refused("something that is not a socket stands there")
        assert path.read_text() == "precious"
        path.unlink()


def test_too_few_descriptors_are_refused_in_words(place: Place) -> None:
    """F58: the floor."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 4095))

    place.refused("RLIMIT_NOFILE allows 4095", preexec_fn=limit)


def test_another_user_cannot_start_one(place: Place) -> None:
    os.chmod(place.base, 0o755)
    place.refused("it must run as root", user=65534, group=65534, extra_groups=[])


def test_a_second_manager_is_refused_and_the_first_still_answers(lighterd: Lighterd) -> None:
    for place in (Place(lighterd.base), Place(lighterd.base)):
        place.refused(f"manager with pid {lighterd.pid} holds it")
    other = Place(lighterd.base)
    other.root = lighterd.base / "other"
    other.refused(f"lock {lighterd.state}/lock: manager with pid {lighterd.pid} holds it")
    assert lighterd.ctl("version").returncode == 0


def test_f40_a_refused_start_leaves_the_modes_of_anothers_directories(
    lighterd: Lighterd, place: Place
) -> None:
    """It would open the root of one, or shut out the clients of the other."""
    modes = {lighterd.root: 0o700, lighterd.state: 0o711}
    place.refused("it is the root of an instance", "--state", str(lighterd.root))
    place.refused("holds it", "--root", str(lighterd.state))
    os.chmod(lighterd.state, 0o751)
    place.refused("holds it", "--state", str(lighterd.state))
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in modes} == {
        **modes,
        lighterd.state: 0o751,
    }


def test_daemon_returns_when_it_serves_and_a_container_inherits_nothing_odd(
    daemon: Place,
) -> None:
    def odd_shell() -> None:
        os.umask(0)
        resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))

    started = time.monotonic()
    done = daemon.start("--daemon", preexec_fn=odd_shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started < 60
    address = str(daemon.state / "lighter.sock")
    version = subprocess.run([BIN / "ctl", "-a", address, "version"], capture_output=True)
    assert version.returncode == 0, version.stderr  # at once: it serves already
    pid = int((daemon.state / "lighterd.pid").read_text())
    assert os.getsid(pid) != os.getsid(0)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Umask:\t0022" in status
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (4096, 8192)
    for name in ("lighterd.log", "lock"):
        assert stat.S_IMODE((daemon.state / name).stat().st_mode) == 0o600
    refused = daemon.start("--daemon")
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"manager with pid {pid} holds it\n")
    assert refused.stderr.startswith("lighterd: lock ")


def test_daemon_says_in_the_terminal_why_it_does_not_start(daemon: Place) -> None:
    (daemon.root / "io.containerd.x").mkdir()
    daemon.refused("holds containerd's data", "--daemon")
    (daemon.root / "io.containerd.x").rmdir()
    (daemon.state / "lighterd.pid").mkdir()
    daemon.refused(f"use {daemon.state}/lighterd.pid: Is a directory", "--daemon")
    (daemon.state / "lighterd.pid").rmdir()


def test_stop_leaves_containers_running_and_the_next_start_adopts_them(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl("run", "-d", busybox, "web", "sleep", "1000", check=True)
    before = lighterd.ctl("--format", "json", "tasks", "ls", check=True).stdout
    assert lighterd.stop() == 0
    assert not (lighterd.state / "lighterd.pid").exists()
    assert len(lighterd.shims()) == 1
    away = lighterd.ctl("--connect-timeout", "200ms", "tasks", "ls")
    assert away.returncode == 1 and away.stderr.startswith(b"ctl: ")
    lighterd.start()
    assert lighterd.ctl("--format", "json", "tasks", "ls", check=True).stdout == before
    assert lighterd.ctl("exec", "web", "true").returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_stop_it_cleanly(lighterd: Lighterd, signum: int) -> None:
    os.kill(lighterd.pid, signum)
    assert lighterd.process is not None and lighterd.process.wait(20) == 0
    assert "Traceback" not in lighterd.log_end()


def test_new_work_is_refused_at_four_fifths_of_the_descriptors(
    lighterd: Lighterd, busybox: str
) -> None:
    """F58: what runs is served; what is new has to wait."""
    lighterd.ctl("run", "-d", busybox, "old", "sleep", "1000", check=True)
    used = len(os.listdir(f"/proc/{lighterd.pid}/fd"))
    hard = resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE, (int(used / 0.8), hard))
    done = lighterd.ctl("run", "-d", "--rm", busybox, "new", "true")
    assert done.returncode == 125 and b"80 % of its file descriptors" in done.stderr, done
    assert lighterd.ctl("exec", "old", "true").returncode == 0
    with lighterd.client() as client, pytest.raises(errors.NotFound):
        client.call("containers", "get", id="new")
    resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE, (hard, hard))
    lighterd.ctl("run", "-d", "--rm", busybox, "new", "true", check=True)


def test_a_socket_that_is_deleted_comes_back(
    lighterd: Lighterd, busybox: str, make_lighterd: Callable[..., Lighterd]
) -> None:
    address = Path(lighterd.address)
    with lighterd.client() as before:
        address.unlink()
        (lighterd.state / "shims.sock").unlink()
        await_that(address.is_socket, 30, "the socket is back")
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        assert before.call("tasks", "list") == {"tasks": []}
    await_that((lighterd.state / "shims.sock").is_socket, 30, "the shims' socket is back")
    assert lighterd.ctl("run", "--rm", busybox, "x", "true").returncode == 0
    lighterd.stop()
    address.unlink(missing_ok=True)
    gone = lighterd.ctl("--connect-timeout", "200ms", "version")
    assert gone.returncode == 1
    assert str(address).encode() in gone.stderr and gone.stderr.count(b"\n") == 1, gone.stderr


def test_a_manager_that_a_watchdog_ends_says_where_it_was(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """The watchdog's signal is SIGABRT; the log then shows the line at which the loop hung."""
    lighterd = make_lighterd()
    trace = lighterd.base / "trace"
    lighterd.start(
        WATCHDOG_USEC="60000000",
        FAULT="containers.row-committed:delay",
        FAULT_DELAY_S="600",
        FAULT_TRACE=str(trace),
    )
    image = lighterd.import_busybox()
    hung = subprocess.Popen(
        lighterd.ctl_argv("containers", "create", image, "a"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await_that(lambda: "containers.row-committed" in trace.read_text(), 20, "the loop hangs")
    os.kill(lighterd.pid, signal.SIGABRT)
    assert lighterd.process is not None
    assert lighterd.process.wait(20) == -signal.SIGABRT
    hung.kill()
    hung.wait()
    assert "Fatal Python error: Aborted" in lighterd.log_end()
    assert "daemon/containers/maker.py" in lighterd.log_end()


def test_a_signal_before_the_first_answers_ends_it_in_order(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd()
    lighterd.launch(FAULT="start.bound:stop")
    process = psutil.Process(lighterd.pid)
    await_that(lambda: process.status() == psutil.STATUS_STOPPED, 20, "it stops itself")
    for signum in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(signum)
    lighterd.wait_ready()
    assert lighterd.process is not None and lighterd.process.wait(20) == 0, lighterd.log_end()
    assert "manager stops; containers go on" in lighterd.log_end()


def test_what_is_loaded_before_it_answers_is_written_down(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """Also what is imported on the way: the list itself is held in tests/unit/daemon."""
    lighterd = make_lighterd()
    # A database and a file system that are met for the second time: the first takes more.
    lighterd.start().stop()
    begin = lighterd.log.stat().st_size
    lighterd.start(PYTHONPROFILEIMPORTTIME="1")
    with lighterd.log.open() as log:
        log.seek(begin)
        before, answers, after = log.read().partition("manager answers")
    assert answers, before[-2000:]
    loaded = re.compile(r"^import time:.*\| +(\S+)$", re.M)
    first, later = set(loaded.findall(before)), set(loaded.findall(after))
    ours = {name for name in first if name.startswith("lighter.")}
    assert ours <= set(LOADED.read_text().split())
    assert "lighter.daemon.services" in later
    # What lies behind modules that are put off.
    behind = {"_ssl", "_hashlib", "_ast", "tokenize"}
    assert not behind & first and behind <= later
