"""A whole shim as a process, against runtimes that behave and others that do not."""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lighter.proto import errors
from lighter.shim import linux
from lighter.shim.shim import claim
from tests import processes
from tests.harness import await_that
from tests.unit.shim import runtimes
from tests.unit.shim.manager import FakeManager, Shim, make_fifo

MODULES = Path(__file__).with_name("modules.txt")
# What a shim without streams and without a container holds, and nothing else.
DESCRIPTORS = sorted(
    [
        *["/dev/null"] * 3,
        "anon_inode:[eventpoll]",  # the loop
        *["pipe"] * 2,  # SIGCHLD's wakeup
        "socket",  # to the manager
    ]
)


def descriptors(pid: int) -> list[str]:
    links = (target for _, target in processes.descriptors(pid))
    return sorted(link.partition(":[")[0] if link[0] in "ps" else link for link in links)


def settled(pid: int, wanted: list[str]) -> list[str]:
    """Its descriptors once they are those; or the last look, after which they never will be: a
    shim that has answered may still close what it read.
    """
    end = time.monotonic() + 20
    while (found := descriptors(pid)) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    return found


def children(pid: int) -> list[int]:
    """In the order of their births."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_a_life(manager: FakeManager, tmp_path: Path) -> None:
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime"))
    shim.call("start")
    shim.kill()
    assert shim.event("exit")["exit_status"] == 137
    shim.wait_end()
    assert shim.topics() == ["create", "start", "exit", "closed"]
    assert not Path(shim.order["exit_record"]).exists()
    assert manager.reports() == ""


def test_its_descriptors_are_exactly_the_written_list(manager: FakeManager, tmp_path: Path) -> None:
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime"))
    shim.event("create")
    # The OOM watch is there only for a container in a memory cgroup of its own.
    assert settled(shim.pid, DESCRIPTORS) == DESCRIPTORS
    shim.call("start")
    for number in range(5):
        with pytest.raises(errors.LighterError):
            shim.exec(f"x{number}", stdout="/no/such/fifo")
    assert settled(shim.pid, DESCRIPTORS) == DESCRIPTORS


def test_nothing_of_it_listens_on_an_abstract_socket(manager: FakeManager, tmp_path: Path) -> None:
    """SEC-64: such a socket would be reachable from every container on the host's network."""
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime"))
    inodes = {
        target.removeprefix("socket:[").rstrip("]")
        for _, target in processes.descriptors(shim.pid)
        if target.startswith("socket:")
    }
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    own = [fields for fields in lines if fields[6] in inodes]
    assert own, "its connection is not listed"
    assert not [fields for fields in own if len(fields) > 7 and fields[7].startswith("@")]


def test_f04_a_withdrawn_claim_means_no_shim(manager: FakeManager, tmp_path: Path) -> None:
    order = manager.order("c", runtimes.fake(tmp_path / "runtime"))
    os.unlink(order["claim"])
    shim = manager.fork(order)
    shim.wait_end()
    assert sorted(path.name for path in shim.bundle.iterdir()) == ["rootfs"]


@pytest.mark.root
def test_f04_a_claim_for_which_the_disk_has_no_room_is_none(tiny_disk: Path) -> None:
    """Else the manager would find a record that it cannot read, of a shim that lives."""
    (tiny_disk / "claim").touch()
    order = {
        "claim": str(tiny_disk / "claim"),
        "record": str(tiny_disk / "shim.json"),
        "incarnation": "i",
        "namespace": "default",
        "id": "c",
        "exit_record": "/" + "x" * 2 * resource.getpagesize(),  # more than the last page takes
    }
    with open(tiny_disk / "filler", "wb", buffering=0) as filler:
        with suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        filler.truncate(os.fstat(filler.fileno()).st_size - resource.getpagesize())
    with pytest.raises(OSError, match="No space left"):
        claim(order, 1, "boot")
    assert sorted(os.listdir(tiny_disk)) == ["claim", "filler"]


FAILING_CREATES = {
    "fails": ("exit 1", errors.FailedPrecondition),
    "is silent": ("exit 0", errors.Internal),
    "crashes": ("kill -SEGV $$", errors.FailedPrecondition),
    "names a stranger": ('printf 1 >"$pid_file"', errors.Internal),
    "names nobody": ('printf x >"$pid_file"', errors.Internal),
    "hangs": ("sleep 1000", errors.DeadlineExceeded),
}


@pytest.mark.parametrize("how", FAILING_CREATES)
def test_a_create_that_fails_is_undone_and_said(
    manager: FakeManager, tmp_path: Path, how: str
) -> None:
    text, expected = FAILING_CREATES[how]
    undone = tmp_path / "undone"
    runtime = runtimes.fake(tmp_path / "runtime", create=text, delete=f"echo $id >>{undone}")
    timeout_ns = int((1.5 if how == "hangs" else 30) * 1e9)  # for each call, the delete too
    order = manager.order("c", runtime, timeout_ns=timeout_ns, stdout=make_fifo(tmp_path / "out"))
    shim = manager.fork(order)
    with pytest.raises(expected):
        shim.created()
    assert shim.event("closed")["error"]
    shim.wait_end()
    assert undone.read_text() == "c\n"
    assert manager.reports() == "", "an expected failure is no error of the shim"


@pytest.mark.parametrize(
    "fields",
    [
        {"mounts": [["bind", "/no/such/source", ["rbind"]]]},
        {"mounts": [["nosuchfs", "x", []]]},
        {"stdout": "/no/such/fifo"},
        {"runc": "/no/runc"},
        {"terminal": True, "console": "/no/such/dir/socket"},
        {"log": {"dir": "/no/such/dir", "max_bytes": 0, "max_files": 1}, "runc": "/bin/false"},
    ],
    ids=["source", "fstype", "fifo", "runtime", "console", "log"],
)
def test_a_create_that_cannot_be_done_ends_the_shim(
    manager: FakeManager, tmp_path: Path, fields: dict[str, object]
) -> None:
    order = manager.order("c", runtimes.fake(tmp_path / "runtime"), **fields)
    shim = manager.fork(order)
    with pytest.raises(errors.LighterError):
        shim.created()
    shim.wait_end()
    assert "ImportError" not in manager.reports()


def test_part_of_its_mounts_is_taken_off_again(manager: FakeManager, tmp_path: Path) -> None:
    mounts = [["tmpfs", "x", []], ["bind", "/no/such/source", ["rbind"]]]
    order = manager.order("c", runtimes.fake(tmp_path / "runtime"), mounts=mounts)
    shim = manager.fork(order)
    with pytest.raises(errors.FailedPrecondition, match="bind of /no/such/source: No such file"):
        shim.created()
    shim.wait_end()
    assert order["bundle"] not in Path("/proc/self/mountinfo").read_text()


def test_a_create_that_fails_says_why_when_its_undoing_fails_too(
    manager: FakeManager, tmp_path: Path
) -> None:
    """Also when the shim has met no manager yet."""
    moved = tmp_path / "moved"
    runtime = runtimes.fake(
        tmp_path / "runtime", create=f'mv "$bundle" {moved}; : >"$bundle"; exit 3'
    )
    order = manager.order("c", runtime, mounts=[["tmpfs", "x", []]])
    seen: list[str] = []
    greet, manager.greet = manager.greet, seen.append  # type: ignore[method-assign]
    shim = manager.fork(order)
    try:
        manager.until(
            lambda: seen and shim.bundle.is_file() and not children(shim.pid),
            "the create has failed",
        )
        manager.pump(200)
        manager.greet = greet  # type: ignore[method-assign]
        manager.greet(shim.incarnation)
        with pytest.raises(errors.FailedPrecondition, match=r"status 3 .*; .*Not a directory"):
            shim.created()
        shim.wait_end()
        assert "closed" not in shim.topics(), "its root is mounted still"
    finally:
        linux.umount(str(moved / "rootfs"))
        shim.bundle.unlink()
        moved.rename(shim.bundle)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """Files that stand for a cgroup, of either kind."""
    group = tmp_path / "cgroup"
    group.mkdir()
    for name in ("cgroup.procs", "freezer.state", "cgroup.freeze"):
        (group / name).touch()
    return group


def test_a_pause_that_meets_a_kill_leaves_nothing_frozen(
    manager: FakeManager, tmp_path: Path, group: Path
) -> None:
    """v1: init would stay with its SIGKILL pending."""
    gate = make_fifo(tmp_path / "gate")
    pause = f"cat {gate}; for file in freezer.state cgroup.freeze; do echo 1 >{group}/$file; done"
    runtime = runtimes.fake(tmp_path / "runtime", pause=pause)
    shim = manager.run("c", runtime, cgroup="/../../../../.." + str(group))
    shim.call("start")
    manager.acknowledges = False  # it stays until the pause is answered
    paused = shim.ask("pause")
    with open(gate, "w"):  # the runtime has opened it: the pause is under way
        shim.kill()
    with pytest.raises(errors.FailedPrecondition, match="it was killed"):
        manager.answer(paused)
    states = {(group / name).read_text() for name in ("freezer.state", "cgroup.freeze")}
    assert states & {"THAWED", "0"}, states
    manager.acknowledges = True
    manager.acknowledge(shim.incarnation, len(shim.topics()))
    shim.event("closed")


def test_a_pause_that_fails_leaves_nothing_frozen(
    manager: FakeManager, tmp_path: Path, group: Path
) -> None:
    """runc on v2 does, and what is running cannot be resumed."""
    pause = f"for file in freezer.state cgroup.freeze; do echo 1 >{group}/$file; done; exit 1"
    runtime = runtimes.fake(tmp_path / "runtime", pause=pause)
    shim = manager.run("c", runtime, cgroup="/../../../../.." + str(group))
    shim.call("start")
    with pytest.raises(errors.LighterError, match="pause"):
        shim.call("pause")
    states = {(group / name).read_text() for name in ("freezer.state", "cgroup.freeze")}
    assert states & {"THAWED", "0"}, states
    shim.kill()
    shim.event("closed")


def test_a_second_pause_leaves_the_first_alone(
    manager: FakeManager, tmp_path: Path, group: Path
) -> None:
    """Its caller, or its manager, has gone; a runtime refuses to pause what it has frozen."""
    gate, froze = make_fifo(tmp_path / "gate"), tmp_path / "froze"
    pause = f"if [ -e {froze} ]; then exit 1; fi; : >{froze}; "
    pause += f"for file in freezer.state cgroup.freeze; do echo 1 >{group}/$file; done; cat {gate}"
    runtime = runtimes.fake(tmp_path / "runtime", pause=pause, resume="")
    shim = manager.run("c", runtime, cgroup="/../../../../.." + str(group))
    shim.call("start")
    first = shim.ask("pause")
    manager.until(froze.exists, "it is frozen")
    with pytest.raises(errors.FailedPrecondition, match="a pause is under way"):
        shim.call("pause")
    with open(gate, "w"):
        pass
    manager.answer(first)
    states = {(group / name).read_text() for name in ("freezer.state", "cgroup.freeze")}
    assert states == {"1\n"}, states
    shim.call("resume")
    shim.kill()
    shim.event("closed")


def test_all_of_an_exec_is_that_exec(manager: FakeManager, tmp_path: Path, group: Path) -> None:
    """A manager of the release before hands such a request on."""
    runtime = runtimes.fake(tmp_path / "runtime", exec='sleep 1000 & printf %s $! >"$pid_file"')
    shim = manager.run("c", runtime, cgroup="/../../../../.." + str(group))
    shim.call("start")
    (group / "cgroup.procs").write_text(f"{shim.event('create')['pid']}\n")
    shim.exec("x")
    shim.kill(exec_id="x", everyone=True)
    assert shim.event("exit", "x")["exit_status"] == 137
    shim.exec("y")  # init runs
    shim.kill()
    shim.event("closed")


def test_a_root_unmounted_by_hand_does_not_hold_the_end_up(
    manager: FakeManager, tmp_path: Path
) -> None:
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime"), mounts=[["tmpfs", "x", []]])
    linux.umount(str(shim.bundle / "rootfs"))
    shim.kill()
    shim.event("closed")
    shim.wait_end()
    assert manager.reports() == ""


@pytest.fixture
def running(manager: FakeManager, tmp_path: Path) -> Shim:
    runtime = runtimes.fake(
        tmp_path / "runtime",
        exec='if [ "$process" = slow ]; then sleep 0.3; fi; '
        'case $process in fail) exit 1;; esac; sleep 1000 & printf %s $! >"$pid_file"',
        pause="",
        resume="",
    )
    shim = manager.run("c", runtime)
    shim.call("start")
    return shim


def test_every_error_path_runs_without_an_import(manager: FakeManager, running: Shim) -> None:
    """F73 and the upgrade rule: a shim loads nothing, whatever goes wrong."""
    shim = running
    failing: list[tuple[str, dict[str, object]]] = [
        ("start", {}),
        ("no_such_method", {}),
        ("kill", {"exec_id": "", "signal": 99, "all": False}),
        ("kill", {"exec_id": "", "signal": -1, "all": False}),
        ("kill", {"exec_id": "nobody", "signal": 9, "all": False}),
        ("kill", {}),
        ("resize", {"exec_id": "", "rows": 1, "cols": 1}),
        ("resize", {"exec_id": "", "rows": 1 << 20, "cols": -1}),
        ("resume", {}),
        ("attach", {"exec_id": "", "stdin": "", "stdout": "/etc/passwd", "stderr": ""}),
        ("attach", {"exec_id": "", "stdin": 3, "stdout": None, "stderr": []}),
        ("close_stdin", {"exec_id": "nobody"}),
        ("exec", {"exec_id": "x"}),
    ]
    for method, body in failing:
        with pytest.raises(errors.LighterError):
            shim.call(method, **body)
    for process in ("fail", "fail"):
        with pytest.raises(errors.FailedPrecondition):
            shim.exec("x", process)
    with pytest.raises(errors.InvalidArgument):
        shim.exec("../x", "slow")
    shim.exec("x")
    with pytest.raises(errors.AlreadyExists):
        shim.exec("x")
    shim.kill(exec_id="x")
    assert shim.event("exit", "x")["exit_status"] == 137
    assert "ImportError" not in manager.reports()


def test_a_container_that_ends_ends_its_execs_and_tells_them_first(
    manager: FakeManager, running: Shim
) -> None:
    for number in range(8):
        running.exec(f"x{number}")
    running.kill()
    running.event("closed")
    exits = [event.body["exec_id"] for _, event in manager.events if event.topic == "/tasks/exit"]
    assert sorted(exits[:-1]) == [f"x{number}" for number in range(8)]
    assert exits[-1] == ""


def test_an_exec_that_fails_beside_one_that_runs_does_not_hold_the_end_up(
    manager: FakeManager, running: Shim
) -> None:
    running.exec("runs")
    body = dict.fromkeys(("console", "stdin", "stdout", "stderr"), "")
    body |= {"exec_id": "slow", "process": "slow"}
    slow = running.ask("exec", terminal=False, rows=0, cols=0, **body)
    running.kill(exec_id="runs")
    running.event("exit", "runs")
    with pytest.raises(errors.FailedPrecondition):
        running.exec("fails", "fail")
    manager.answer(slow)
    running.kill()
    running.event("closed")
    running.wait_end()


def test_init_that_dies_between_create_and_start(manager: FakeManager, tmp_path: Path) -> None:
    runtime = runtimes.fake(tmp_path / "runtime", start="exit 1")
    shim = manager.run("c", runtime)
    pid = shim.event("create")["pid"]
    manager.acknowledges = False
    os.kill(pid, signal.SIGKILL)
    shim.event("closed")
    with pytest.raises(errors.FailedPrecondition, match="it is stopped"):
        shim.call("start")
    manager.acknowledges = True
    manager.acknowledge(shim.incarnation, len(shim.topics()))
    assert shim.topics() == ["create", "exit", "closed"]


def test_init_that_dies_while_start_is_under_way_is_told_after_it(
    manager: FakeManager, tmp_path: Path
) -> None:
    runtime = runtimes.fake(
        tmp_path / "runtime",
        create=f'sleep 1000 & printf %s $! | tee "$pid_file" >{tmp_path}/pid',
        start=f"kill -9 $(cat {tmp_path}/pid); sleep 0.2",
    )
    shim = manager.run("c", runtime)
    shim.call("start")
    shim.event("closed")
    assert shim.topics() == ["create", "start", "exit", "closed"]


def test_f09_init_that_dies_while_a_start_has_lost_its_manager_is_told_to_the_next(
    manager: FakeManager, tmp_path: Path
) -> None:
    gate = make_fifo(tmp_path / "gate")
    runtime = runtimes.fake(tmp_path / "runtime", start=f": <{gate}; sleep 0.2")
    shim = manager.run("c", runtime)
    pid = shim.event("create")["pid"]
    shim.ask("start")
    with open(gate, "w"):  # the runtime has opened it: the start is under way
        manager.vanish()
        os.kill(pid, signal.SIGKILL)
    manager.come_back()
    shim.event("closed")
    assert shim.topics() == ["create", "start", "exit", "closed"]
    assert shim.event("exit")["exit_status"] == 137


def test_f12_the_pipes_of_an_exec_go_with_it_though_there_is_no_manager(
    manager: FakeManager, running: Shim, tmp_path: Path
) -> None:
    own = settled(running.pid, DESCRIPTORS)
    stdin, stdout = make_fifo(tmp_path / "in"), make_fifo(tmp_path / "out")
    reader = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
    pid = running.exec("x", stdin=stdin, stdout=stdout)
    assert descriptors(running.pid) != own
    manager.vanish()
    os.kill(pid, signal.SIGKILL)
    # The end of the file: the shim has let go of it.
    assert select.select([reader], [], [], 20)[0] and os.read(reader, 1) == b""
    os.close(reader)
    manager.come_back()
    assert running.event("exit", "x")["exit_status"] == 137
    manager.until(lambda: descriptors(running.pid) == own, "it holds what it held before")


def test_f15_output_is_logged_to_its_last_byte_without_a_manager(
    manager: FakeManager, tmp_path: Path
) -> None:
    """Init leaves one behind that writes later; what is logged is what comes up to the end."""
    gate = make_fifo(tmp_path / "gate")
    written = 3_000_000
    late = f"{{ sleep 0.5; head -c {written} /dev/zero; }} &"
    runtime = runtimes.fake(
        tmp_path / "runtime",
        create=f'sh -c ": <{gate}; {late}" & printf %s $! >"$pid_file"',
    )
    log = {"dir": str(tmp_path / "log"), "max_bytes": 0, "max_files": 1}
    (tmp_path / "log").mkdir()
    shim = manager.run("c", runtime, log=log)
    manager.vanish()
    with open(gate, "w"):
        await_that(Path(shim.order["exit_record"]).exists, 20, "its end is recorded")
    manager.come_back()
    shim.event("closed")
    data = b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())
    assert data.count(b"\0") >= written


def test_a_second_kill_of_an_ended_task_is_refused(manager: FakeManager, running: Shim) -> None:
    manager.acknowledges = False
    running.kill()
    running.event("exit", "")
    with pytest.raises((errors.NotFound, errors.FailedPrecondition)):
        running.kill()
    manager.acknowledges = True
    manager.acknowledge(running.incarnation, len(running.topics()))


def test_a_child_that_keeps_stdout_open_is_not_waited_for_for_ever(
    manager: FakeManager, tmp_path: Path
) -> None:
    """SEC-79: it is not in the container's cgroup here, so only the drain's limit ends the wait."""
    fifo = make_fifo(tmp_path / "out")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    runtime = runtimes.fake(
        tmp_path / "runtime",
        create='setsid sleep 30 & sleep 1000 2>/dev/null & printf %s $! >"$pid_file"',
    )
    shim = manager.run("c", runtime, stdout=fifo)
    shim.kill()
    assert shim.event("exit")["exit_status"] == 137, "the exit is told at once"
    manager.until(lambda: "closed" in shim.topics(), "it is closed", 12)
    os.close(reader)


def test_the_modules_of_a_shim_are_written_down() -> None:
    """The import budget: what the spawner has loaded is what every shim carries."""
    script = (
        "import os\nos.register_at_fork = lambda **hooks: None\n"
        "import lighter.shim.spawner\nfrom lighter.shim import guard\nguard.preload()\n"
        "import sys\nprint(*sorted(sys.modules), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys\nprint(*sorted(sys.modules), sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split()) - set(bare.stdout.split())
    written = {line for line in MODULES.read_text().splitlines() if not line.startswith("#")}
    assert loaded <= written, f"not in {MODULES.name}: {sorted(loaded - written)}"
    never = {"asyncio", "dataclasses", "argparse", "subprocess", "pathlib", "tempfile", "ssl"}
    assert not loaded & never


def test_a_shim_refuses_to_import() -> None:
    script = (
        "from lighter.shim import guard\nguard.preload()\nguard.forbid_imports()\n"
        "import json, os\n"
        "try:\n    import calendar_of_no_one\nexcept ImportError as err:\n    print(err)\n"
        "try:\n    import colorsys\nexcept ImportError as err:\n    print(err)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "import calendar_of_no_one: a shim loads nothing after its fork",
        "import colorsys: a shim loads nothing after its fork",
    ]
