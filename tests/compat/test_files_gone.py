"""Shims whose version was removed: they have all they need, and read nothing of another one."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto.version import VERSION
from tests import images
from tests.compat.releases import make_release
from tests.harness import BIN, Lighterd, await_that

WRITES = "i=0; while :; do echo line $i; i=$((i+1)); [ $((i % 500)) -ne 0 ] || usleep 20000; done"
# What is done to a container, and what it must come to, files or none.
ASKED = (
    (("tasks", "exec", "--exec-id", "a", "c", "true"), 0),
    (("tasks", "exec", "--exec-id", "b", "c", "sh", "-c", "exit 7"), 7),
    (("tasks", "exec", "--exec-id", "d", "c", "/no/such"), 127),
    (("tasks", "exec", "--exec-id", "e", "--cwd", "/no/such", "c", "true"), 127),
    (("tasks", "exec", "--exec-id", "f", "--user", "4000000000", "c", "true"), None),
    (("tasks", "kill", "--exec-id", "gone", "c"), 1),
    (("tasks", "kill", "-s", "64", "ended"), 1),
    (("tasks", "pause", "c"), 0),
    (("tasks", "pause", "c"), 1),
    (("tasks", "exec", "--exec-id", "g", "c", "true"), None),
    (("tasks", "resume", "c"), 0),
    (("tasks", "resume", "c"), 1),
    (("tasks", "metrics", "c"), 0),
    (("tasks", "ps", "c"), 0),
    (("update", "--cpuset-cpus", "4000", "c"), 1),
    (("update", "--pids-limit", "50", "c"), 0),
    (("tasks", "exec", "--exec-id", "h", "c", "sh", "-c", "kill -9 $$"), 137),
)


@pytest.fixture
def spawner(tmp_path: Path) -> Path:
    """A version of its own, whose spawner alone the manager of this checkout uses."""
    return make_release(tmp_path / "cores", VERSION)


@pytest.fixture
def one(
    make_lighterd: Callable[..., Lighterd], spawner: Path, tmp_path: Path
) -> Iterator[Lighterd]:
    manager = make_release(tmp_path / "managers", VERSION)
    program = manager / "lighterd"
    program.write_text(program.read_text().replace(f"{manager}/spawner", f"{spawner}/spawner"))
    lighterd = make_lighterd()
    lighterd.use(manager)
    yield lighterd
    if lighterd.process is not None and lighterd.process.poll() is None:
        lighterd.kill9()
    lighterd.use(BIN)


def begin(lighterd: Lighterd, name: str, script: str, *options: str) -> None:
    argv = ("run", "-d", *options, images.REFERENCE, name, "sh", "-c", script)
    lighterd.ctl(*argv, check=True)


def test_every_path_of_a_shim_goes_without_its_files(one: Lighterd, spawner: Path) -> None:
    lighterd = one.start()
    lighterd.import_busybox()
    begin(lighterd, "c", f"trap 'exit 9' TERM; ({WRITES}) & wait", "--log-max-size", "64k")
    begin(lighterd, "ended", "exit 3")
    assert lighterd.ctl("tasks", "wait", "ended", check=True).stdout == b"3\n"
    shutil.rmtree(spawner)
    for argv, code in ASKED:
        done = lighterd.ctl(*argv)
        said = done.stderr.decode()
        if code is not None:
            assert done.returncode == code, (argv, said)
        assert "import" not in said.lower(), (argv, said)
    logs = lighterd.root / "logs/default/c"
    await_that(lambda: len(list(logs.iterdir())) >= 3, 60, "its log was turned over")
    # A shim that is made now has nothing to read either.
    assert (
        lighterd.ctl("run", "--rm", images.REFERENCE, "new", "sh", "-c", "exit 4").returncode == 4
    )
    assert lighterd.stop() == 0
    lighterd.use(BIN)
    lighterd.start()
    await_that(lambda: lighterd.ctl("kill", "-s", "TERM", "c").returncode == 0, 20, "it is killed")
    assert lighterd.ctl("tasks", "wait", "c", check=True).stdout == b"9\n"
    for name in ("c", "ended"):
        lighterd.ctl("rm", "-f", name, check=True)
    log = lighterd.log_end()
    assert "ImportError" not in log and "loads nothing after its fork" not in log, log


def test_a_shim_that_would_load_a_module_late_is_caught(one: Lighterd, spawner: Path) -> None:
    """The guard stands in the processes that matter: else a module of another version is read."""
    task = spawner / "site/lighter/shim/task.py"
    text = task.read_text()
    where = "    async def pause(self) -> dict[str, Any]:\n"
    assert text.count(where) == 1
    task.write_text(text.replace(where, f"{where}        import colorsys\n"))
    lighterd = one.start()
    lighterd.import_busybox()
    begin(lighterd, "c", "sleep 1000")
    refused = lighterd.ctl("pause", "c")
    assert refused.returncode == 1
    assert b"import colorsys: a shim loads nothing after its fork" in refused.stderr
