"""The whole product once through: real manager, real shims, real runc, through ctl as users do."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from tests.harness import BIN, Lighterd, await_that

pytestmark = pytest.mark.shared_lighterd


def tasks(lighterd: Lighterd) -> dict[str, dict[str, Any]]:
    with lighterd.client() as client:
        return {task["id"]: task for task in client.call("tasks", "list")["tasks"]}


def status(lighterd: Lighterd, container: str) -> str | None:
    return tasks(lighterd).get(container, {}).get("status")


def await_status(lighterd: Lighterd, container: str, wanted: str) -> None:
    await_that(lambda: status(lighterd, container) == wanted, 20, f"{container} is {wanted}")


def run_detached(lighterd: Lighterd, image: str, name: str, *command: str) -> int:
    """Returns init's pid."""
    lighterd.ctl("run", "-d", image, name, *command, check=True)
    pid: int = tasks(lighterd)[name]["pid"]
    return pid


def test_version_tells_which_instance_answers(lighterd: Lighterd) -> None:
    assert lighterd.ctl("version", check=True).stdout
    with lighterd.client() as client:
        version = client.call("version", "get")
        assert version["name"] == "lighter"
        assert version["instance"] == lighterd.instance
        assert version["generation"] == client.welcome.generation


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_an_import_is_listed_and_can_be_repeated(lighterd: Lighterd, compressed: bool) -> None:
    for _ in range(2):
        name = lighterd.import_busybox(compressed=compressed)
    listed = json.loads(lighterd.ctl("--format", "json", "images", "ls", check=True).stdout)
    assert [image["name"] for image in listed] == [name]


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_run_returns_the_process_own_code(lighterd: Lighterd, busybox: str, code: int) -> None:
    done = lighterd.ctl(
        "run", "--rm", busybox, "c", "sh", "-c", f"echo out; echo err >&2; exit {code}"
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, b"out\n", b"err\n")


def test_run_passes_its_stdin_on(lighterd: Lighterd, busybox: str) -> None:
    data = bytes(range(256)) * 4096
    done = lighterd.ctl("run", "--rm", "-i", "--name", "c", busybox, "cat", input=data)
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr


def test_run_of_a_missing_program_says_so_and_leaves_nothing(
    lighterd: Lighterd, busybox: str
) -> None:
    done = lighterd.ctl("run", "--rm", busybox, "c", "/no/such/program")
    assert done.returncode == 127
    assert b"no/such/program" in done.stderr
    assert tasks(lighterd) == {}


def test_a_life_in_single_steps(lighterd: Lighterd, busybox: str) -> None:
    pid = run_detached(lighterd, busybox, "web", "sleep", "1000")
    assert status(lighterd, "web") == "running"
    comm = Path(f"/proc/{pid}/comm")
    # The runtime's start returns when init is told to go on, just before it becomes the program.
    await_that(lambda: comm.read_text() == "sleep\n", 10, "the program runs")
    assert len(lighterd.shims()) == 1

    for _ in range(2):  # an exec that was seen to its end is deleted: its id is free again
        done = lighterd.ctl("tasks", "exec", "--exec-id", "x", "web", "sh", "-c", "echo hi; exit 3")
        assert (done.returncode, done.stdout) == (3, b"hi\n"), done.stderr

    lighterd.ctl("tasks", "pause", "web", check=True)
    assert status(lighterd, "web") == "paused"
    lighterd.ctl("tasks", "resume", "web", check=True)
    assert status(lighterd, "web") == "running"

    refused = lighterd.ctl("containers", "delete", "web")
    assert refused.returncode == 1
    assert b"web" in refused.stderr
    assert status(lighterd, "web") == "running"

    lighterd.ctl("tasks", "kill", "--signal", "KILL", "web", check=True)
    await_status(lighterd, "web", "stopped")
    assert tasks(lighterd)["web"]["exit_status"] == 137
    lighterd.ctl("tasks", "delete", "web", check=True)
    lighterd.ctl("containers", "delete", "web", check=True)
    assert tasks(lighterd) == {}
    await_that(lambda: not lighterd.shims(), 15, "the shim ends")


def test_deleting_twice_is_not_found(lighterd: Lighterd, busybox: str) -> None:
    run_detached(lighterd, busybox, "web", "true")
    await_status(lighterd, "web", "stopped")
    with lighterd.client() as client:
        client.call("tasks", "delete", id="web", exec_id="", force=False)
        with pytest.raises(errors.NotFound):
            client.call("tasks", "delete", id="web", exec_id="", force=False)
        client.call("containers", "delete", id="web", force=False)
        with pytest.raises(errors.NotFound):
            client.call("containers", "delete", id="web", force=False)


def test_logs_hold_every_byte_in_order(lighterd: Lighterd, busybox: str) -> None:
    run_detached(lighterd, busybox, "count", "seq", "100000")
    await_status(lighterd, "count", "stopped")
    wanted = "".join(f"{n}\n" for n in range(1, 100_001)).encode()
    assert lighterd.ctl("logs", "count", check=True).stdout == wanted
    assert lighterd.ctl("logs", "--tail", "2", "count", check=True).stdout == b"99999\n100000\n"


def test_events_of_a_life_come_in_order(lighterd: Lighterd, busybox: str) -> None:
    lighterd.ctl("run", "--rm", busybox, "c", "true", check=True)
    topics = [event["topic"] for event in lighterd.events()]
    topics = [topic for topic in topics if topic.startswith("/tasks/")]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_the_container_does_not_notice_that_its_manager_is_killed(
    lighterd: Lighterd, busybox: str
) -> None:
    # A FIFO in a bind mount paces it: it writes, and ends, when the test says so.
    folder = lighterd.base / "share"
    folder.mkdir()
    gate = folder / "gate"
    subprocess.run(["mkfifo", str(gate)], check=True)
    mount = f"type=bind,src={folder},dst=/share,options=rbind:rw"
    script = "seq 1000; cat /share/gate; seq 1001 2000; exit 42"
    lighterd.ctl("run", "-d", "--mount", mount, busybox, "web", "sh", "-c", script, check=True)
    pid = tasks(lighterd)["web"]["pid"]
    shims = lighterd.shims()

    lighterd.kill9()
    assert lighterd.shims() == shims
    lighterd.start()
    await_status(lighterd, "web", "running")
    assert tasks(lighterd)["web"]["pid"] == pid
    assert lighterd.shims() == shims
    assert lighterd.ctl("tasks", "exec", "--exec-id", "x", "web", "true").returncode == 0

    lighterd.kill9()
    gate.write_text("go\n")
    await_that(lambda: not Path(f"/proc/{pid}").exists(), 20, "the container ends by itself")
    lighterd.start()
    await_status(lighterd, "web", "stopped")
    wanted = [*map(str, range(1, 1001)), "go", *map(str, range(1001, 2001))]
    assert lighterd.ctl("logs", "web", check=True).stdout.decode().split() == wanted
    assert tasks(lighterd)["web"]["exit_status"] == 42


def test_an_attached_run_outlives_its_manager(lighterd: Lighterd, busybox: str) -> None:
    attached = subprocess.Popen(
        lighterd.ctl_argv("run", "--rm", "-i", "--name", "c", busybox, "sh", "-c", "cat; exit 9"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert attached.stdin is not None and attached.stdout is not None
    attached.stdin.write(b"before\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == b"before\n"
    lighterd.kill9()
    attached.stdin.write(b"between\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == b"between\n"
    lighterd.start()
    out, _ = attached.communicate(b"after\n", timeout=30)
    assert (attached.returncode, out) == (9, b"after\n")


def test_f40_a_second_manager_on_the_same_root_is_refused(lighterd: Lighterd) -> None:
    second = subprocess.run(
        [str(BIN / "lighterd"), "--root", str(lighterd.root), "--state", f"{lighterd.base}/other"],
        capture_output=True,
        timeout=30,
    )
    assert second.returncode != 0
    assert str(lighterd.root).encode() in second.stderr
    assert lighterd.ctl("version").returncode == 0


def test_f40_of_managers_that_start_at_once_on_one_root_one_serves(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """As units of two names would, or a script that has lost patience."""
    lighterd = make_lighterd()
    argv = [str(BIN / "lighterd"), "--root", str(lighterd.root), "--state", str(lighterd.state)]
    said = [lighterd.base / f"said-{number}" for number in range(4)]
    managers = []
    for path in said:
        with path.open("wb") as file:
            managers.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=file))
    try:
        await_that(lambda: [m.poll() for m in managers].count(None) == 1, 90, "one is left")
        (winner,) = [manager for manager in managers if manager.poll() is None]
        await_that(lambda: lighterd.ctl("version").returncode == 0, 60, "it serves")
        for manager, path in zip(managers, said, strict=True):
            if manager is not winner:
                assert manager.returncode not in (0, None)
                text = path.read_text()
                assert f"pid {winner.pid}" in text and "Traceback" not in text, text
        winner.terminate()
        assert winner.wait(60) == 0
    finally:
        for manager in managers:
            manager.kill()
            manager.wait()
    lighterd._await_spawner()


def test_two_instances_run_side_by_side(make_lighterd: Callable[..., Lighterd]) -> None:
    one, other = make_lighterd().start(), make_lighterd().start()
    for instance in (one, other):
        run_detached(instance, instance.import_busybox(), "same-name", "sleep", "1000")
    one.ctl("tasks", "kill", "--signal", "KILL", "same-name", check=True)
    await_status(one, "same-name", "stopped")
    assert status(other, "same-name") == "running"
