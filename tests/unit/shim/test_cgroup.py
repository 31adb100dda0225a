"""Who is in a cgroup, as far as this process can name them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.shim import cgroup as cgroup_module
from lighter.shim.cgroup import Cgroup, gather, of_process
from tests.harness import await_that


def test_a_process_of_another_pid_namespace_is_not_our_own_group(tmp_path: Path) -> None:
    """It is listed as 0 (cgroups(7)), and kill(2) takes that for the caller's whole group."""
    (tmp_path / "cgroup.procs").write_text("0\n")
    cgroup = Cgroup({"pids": str(tmp_path)}, "")
    assert cgroup.pids() == []
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        cgroup.kill_all(signal.SIGTERM)
        cgroup.kill_all()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.fixture
def places() -> Iterator[tuple[Path, Path]]:
    """Two cgroups of version 2, each the only one below its parent."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next(Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")
    top = root / f"lighter-test-{os.getpid()}"
    home, strange = top / "home", top / "strange"
    home.mkdir(parents=True)
    strange.mkdir()
    yield home, strange
    for directory in (home, strange, top):
        if directory.exists():
            directory.rmdir()


@pytest.mark.root
@pytest.mark.parametrize("alone", [True, False], ids=["alone there", "beside another"])
def test_what_was_restored_elsewhere_is_brought_home(
    places: tuple[Path, Path], alone: bool
) -> None:
    home, strange = places
    inside = f"echo $$ >{strange}/cgroup.procs && exec "
    own = "unshare --pid --fork --kill-child sh -c 'sleep 1000 & echo up; wait'"
    argvs = [["sh", "-c", inside + own], *([] if alone else [["sh", "-c", inside + "sleep 1000"]])]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE) for argv in argvs]
    try:
        assert started[0].stdout is not None and started[0].stdout.readline() == b"up\n"
        before = started[0].pid  # it has no new pid namespace: its children have
        init = int(Path(f"/proc/{before}/task/{before}/children").read_text())
        if not alone:
            other = started[1].pid
            while str(other) not in (strange / "cgroup.procs").read_text().split():
                assert started[1].poll() is None
        (strange.parent / "cgroup.procs").write_text(str(before))
        gather(init, f"/{home.parent.name}/home")
        there = set(map(int, (home / "cgroup.procs").read_text().split()))
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        assert there == {init, *map(int, children)} and len(there) == 2
        assert strange.exists() != alone
        gather(init, f"/{home.parent.name}/home")  # nothing more to do
    finally:
        for process in started:
            process.kill()
            process.wait()
        for directory in (home, strange):
            while directory.exists() and (directory / "cgroup.procs").read_text():
                pass


@pytest.mark.root
def test_nothing_forks_away_from_sigkill_where_the_kernel_cannot_kill_a_cgroup(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on cgroup v2 before Linux 5.14."""
    home, _ = places
    write = cgroup_module._write

    def without_kill(path: str, text: str) -> bool:
        return not path.endswith("/cgroup.kill") and write(path, text)

    kill, frozen = os.kill, set()

    def noting(pid: int, signum: int) -> None:
        frozen.add((home / "cgroup.freeze").read_text())
        kill(pid, signum)

    monkeypatch.setattr(cgroup_module, "_write", without_kill)
    monkeypatch.setattr(os, "kill", noting)
    runs_away = "import os\nfor _ in range(10):\n    if not os.fork():\n        break\n"
    runs_away += "while True:\n    if os.fork():\n        os._exit(0)"
    argv = ["sh", "-c", f'echo $$ >{home}/cgroup.procs && exec "$0" -ISc "$1"', sys.executable]
    subprocess.run([*argv, runs_away], check=True)
    try:
        Cgroup({}, str(home)).kill_all()
        assert frozen == {"1\n"}
        await_that(lambda: "populated 0" in (home / "cgroup.events").read_text(), 10, "all ended")
        assert "frozen 0" in (home / "cgroup.events").read_text()
    finally:
        write(f"{home}/cgroup.kill", "1")
        while "populated 1" in (home / "cgroup.events").read_text():
            pass


@pytest.fixture
def everywhere() -> Iterator[tuple[str, list[Path]]]:
    """A cgroup's path, which is there in every hierarchy, and its directories."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = {Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2")}
    path = f"/lighter-test-{os.getpid()}"
    directories = [root / path[1:] for root in sorted(roots)]
    for directory in directories:
        directory.mkdir()
    yield path, directories
    for directory in directories:
        if directory.exists():
            directory.rmdir()


@pytest.mark.root
@pytest.mark.parametrize("reaped", [False, True])
def test_the_cgroup_of_an_init_that_has_ended_is_where_it_was(
    everywhere: tuple[str, list[Path]], reaped: bool
) -> None:
    path, directories = everywhere
    joins = " ".join(f"echo $$ >{directory}/cgroup.procs;" for directory in directories)
    with subprocess.Popen(["sh", "-c", joins], stderr=subprocess.DEVNULL) as init:
        os.waitid(os.P_PID, init.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        group = of_process(init.pid, path)
        assert group.known and group.pids() == []
        assert group.remove()
        assert not [directory for directory in directories if directory.exists()]


@pytest.mark.root
def test_a_cgroup_that_holds_the_caller_is_no_containers(
    everywhere: tuple[str, list[Path]],
) -> None:
    """Else ending all in it would end the shim too."""
    path, directories = everywhere
    joined = next(one for one in directories if one.parent.name in ("pids", "cgroup"))
    script = (
        f"import os\nopen({str(joined / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from lighter.shim.cgroup import of_process\n"
        f"print(of_process(1 << 30, {path!r}).known)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"False\n"
