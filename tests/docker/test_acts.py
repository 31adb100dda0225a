"""What docker does with containers and images that are there, and fifty containers at once."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docker.engine import IMAGE, VARIANTS, Engine
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.typist import Typist

SLEEP = (IMAGE, "sleep", "1000")


def _names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getnames()


def test_exec_has_streams_codes_and_a_terminal(engine: Engine) -> None:
    engine.run("--name", "box", *SLEEP)
    data = b"x" * (1 << 20)
    done = engine.docker("exec", "-i", "box", "sh", "-c", "cat; echo e >&2; exit 7", input=data)
    assert (done.stdout, done.stderr, done.returncode) == (data, b"e\n", 7)
    missing = engine.docker("exec", "box", "nosuch")
    assert missing.returncode in (126, 127) and b"nosuch" in missing.stderr + missing.stdout
    typist = Typist(engine.docker_argv("exec", "-it", "box", "sh"))
    try:
        typist.expect(rb"# ")
        typist.resize(44, 122)
        typist.type(b"until stty size | grep '44 122'; do sleep 0.1; done; exit 3\n")
        typist.expect(rb"\n44 122\r\n")
        assert typist.wait() == 3
    finally:
        typist.close()
    engine.says("exec", "-d", "box", "sh", "-c", "echo done > /tmp/done; sleep 100")
    await_that(
        lambda: engine.docker("exec", "box", "cat", "/tmp/done").stdout == b"done\n", 30, "it ran"
    )
    await_that(
        lambda: "sleep 1000" in (top := engine.says("top", "box")) and "sleep 100\n" in f"{top}\n",
        30,
        "both are shown",
    )


def test_signals_restarts_renames_and_events(engine: Engine) -> None:
    trap = "trap 'echo hup' HUP; trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done"
    first = engine.run("--name", "box", IMAGE, "sh", "-c", trap)
    await_that(lambda: engine.says("logs", "box") == "up", 30, "it is up")
    engine.says("kill", "-s", "HUP", "box")
    await_that(lambda: engine.says("logs", "box") == "up\nhup", 30, "the signal came")
    pid = engine.state("box")["Pid"]
    engine.says("restart", "-t", "20", "box")
    state = engine.state("box")
    assert state["Status"] == "running" and state["Pid"] != pid
    await_that(lambda: engine.says("logs", "box") == "up\nhup\nup", 30, "it is up again")
    refused = engine.docker("rm", "box")
    assert refused.returncode == 1 and b"running" in refused.stderr
    engine.says("rename", "box", "other")
    engine.says("kill", "other")
    assert engine.says("wait", "other") == "137"
    engine.says("start", "other")
    await_that(lambda: engine.says("logs", "other").endswith("up\nup"), 30, "it heeds signals")
    engine.says("stop", "-t", "20", "other")
    assert engine.state("other")["ExitCode"] == 4
    life = ["create", "start", "kill", "kill", "die", "start", "restart", "rename", "kill", "die"]

    def told() -> list[str]:
        said = engine.says(
            *("events", "--since", "10m", "--until", "0s", "--filter", f"container={first}"),
            *("--format", "{{.Action}}"),
        )
        return [word for word in said.split() if word not in ("attach", "stop")]

    # Docker's "until now" is until the last full second.
    await_that(lambda: told()[: len(life)] == life, 30, "the events of its life are told in order")


@pytest.mark.parametrize("host", VARIANTS, indirect=True)
def test_files_and_images_of_a_container(engine: Engine, tmp_path: Path) -> None:
    engine.run("--name", "box", *SLEEP)
    (tmp_path / "given").write_text("from the host")
    engine.says("cp", f"{tmp_path}/given", "box:/tmp/given")
    assert engine.says("exec", "box", "cat", "/tmp/given") == "from the host"
    assert _names(engine.docker("cp", "box:/tmp/given", "-").stdout) == ["given"]
    assert "A /tmp/given" in engine.says("diff", "box")
    exported = engine.docker("export", "box", check=True).stdout
    assert "tmp/given" in _names(exported)
    try:
        engine.says("commit", "-c", "CMD cat /tmp/given", "box", "made")
        assert engine.says("run", "--rm", "made") == "from the host"
        engine.docker("import", "-", "flat", input=exported, check=True)
        assert engine.says("run", "--rm", "flat", "/bin/cat", "/tmp/given") == "from the host"
        engine.says("save", "-o", f"{tmp_path}/made.tar", "made")
        engine.says("rmi", "made")
        engine.says("load", "-i", f"{tmp_path}/made.tar")
        assert engine.says("run", "--rm", "made") == "from the host"
        recipe = b"FROM made\nRUN echo more >> /tmp/given\nCMD tail -n 1 /tmp/given\n"
        engine.docker("build", "-t", "built", "-", input=recipe, check=True)
        assert engine.says("run", "--rm", "built").endswith("more")
    finally:
        engine.docker("rmi", "-f", "built", "made", "flat")


def test_what_docker_saves_ctl_imports_and_runs(
    engine: Engine, lighterd: Lighterd, tmp_path: Path
) -> None:
    engine.says("tag", IMAGE, "from-docker:1")
    engine.says("save", "-o", f"{tmp_path}/saved.tar", "from-docker:1")
    engine.says("rmi", "from-docker:1")
    lighterd.ctl("images", "import", f"{tmp_path}/saved.tar", check=True)
    name = "docker.io/library/from-docker:1"
    done = lighterd.ctl("run", "--rm", name, "box", "echo", "here", check=True)
    assert done.stdout == b"here\n"
    lighterd.ctl("images", "rm", name, check=True)


def test_what_ctl_exports_docker_loads_and_runs(
    engine: Engine, lighterd: Lighterd, tmp_path: Path
) -> None:
    name = "docker.io/library/from-ctl:1"
    lighterd.ctl("images", "tag", lighterd.import_busybox(), name, check=True)
    lighterd.ctl("images", "export", f"{tmp_path}/ours.tar", name, check=True)
    try:
        assert "from-ctl:1" in engine.says("load", "-i", f"{tmp_path}/ours.tar")
        assert engine.says("run", "--rm", "from-ctl:1", "echo", "here") == "here"
    finally:
        engine.docker("rmi", "-f", "from-ctl:1")
        lighterd.ctl("images", "rm", name, check=True)


def test_images_in_the_manager_are_its_own(engine: Engine, lighterd: Lighterd) -> None:
    """With Docker's containerd image store, one unpacked image serves both."""
    shown = lighterd.ctl("-n", "moby", "images", "ls", "-q", check=True).stdout.decode().split()
    assert shown == ([REFERENCE] if engine.snapshotter else [])
    info = json.loads(engine.says("info", "--format", "{{json .}}"))
    assert info["Driver"] == ("overlayfs" if engine.snapshotter else "overlay2")
    if engine.snapshotter:
        engine.run("--name", "box", *SLEEP)
        id_ = engine.says("inspect", "-f", "{{.Id}}", "box")
        keys = lighterd.ctl("-n", "moby", "snapshots", "ls", check=True).stdout.decode()
        assert id_ in keys
        engine.says("rm", "-f", "box")
        keys = lighterd.ctl("-n", "moby", "snapshots", "ls", check=True).stdout.decode()
        assert id_ not in keys


@pytest.mark.parametrize("host", ["26"], indirect=True)
@pytest.mark.timeout(300)
def test_fifty_at_once(engine: Engine, lighterd: Lighterd) -> None:
    def run(number: int) -> str:
        words = ("--name", f"n{number}", IMAGE, "sh", "-c", f"echo {number}; sleep 1000")
        return engine.says("run", "-d", "--network", "none", *words, timeout=200)

    with ThreadPoolExecutor(10) as pool:
        ids = list(pool.map(run, range(50)))
    assert sorted(engine.says("ps", "-q", "--no-trunc").split()) == sorted(ids)
    with lighterd.client("moby") as client:
        tasks = client.call("tasks", "list")["tasks"]
    assert {task["id"] for task in tasks} == set(ids)
    assert {task["status"] for task in tasks} == {"running"}

    def await_log(number: int) -> None:
        await_that(
            lambda: engine.says("logs", f"n{number}") == str(number), 60, f"n{number} has said it"
        )

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(await_log, range(50)))
    engine.docker("kill", *ids, check=True, timeout=200)
    for id_ in ids:
        assert engine.await_state(id_, Status="exited")["ExitCode"] == 137
