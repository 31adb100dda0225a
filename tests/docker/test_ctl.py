"""ctl beside Docker: it shows what Docker runs, and breaks nothing of it without --force."""

import json

from tests.docker.engine import IMAGE, Engine
from tests.harness import Lighterd, await_that


def test_dockers_containers_are_shown_and_entered(engine: Engine, lighterd: Lighterd) -> None:
    id_ = engine.run("--name", "box", IMAGE, "sh", "-c", "echo out; sleep 1000")
    pid = engine.state("box")["Pid"]

    def ctl(*words: str) -> str:
        return lighterd.ctl("-n", "moby", *words, check=True).stdout.decode()

    assert "moby" in lighterd.ctl("namespaces", "ls", "-q", check=True).stdout.decode().split()
    assert ctl("containers", "ls", "-q").split() == [id_]
    (row,) = [line.split() for line in ctl("tasks", "ls").splitlines()[1:]]
    assert row == [id_, str(pid), "RUNNING"]
    info = json.loads(ctl("containers", "info", id_))
    assert info["Spec"]["process"]["args"] == ["sh", "-c", "echo out; sleep 1000"]
    await_that(lambda: "sleep 1000" in ctl("top", id_[:12]), 30, "it has become its program")
    assert ctl("exec", id_[:12], "echo", "inside") == "inside\n"
    logs = lighterd.ctl("-n", "moby", "logs", id_)
    assert logs.returncode == 1 and b"it was created without one" in logs.stderr, logs
    assert engine.state("box")["Status"] == "running"


def test_what_would_break_them_wants_force(engine: Engine, lighterd: Lighterd) -> None:
    id_ = engine.run("--name", "box", IMAGE, "sleep", "1000")
    for words in (
        ("kill", id_),
        ("stop", id_),
        ("restart", id_),
        ("pause", id_),
        ("rename", id_, "other"),
        ("update", "--memory", "64m", id_),
        ("tasks", "kill", id_),
        ("tasks", "pause", id_),
        ("namespaces", "rm", "moby"),
        ("rm", id_),
        ("containers", "delete", id_),
        ("tasks", "delete", id_),
    ):
        done = lighterd.ctl("-n", "moby", *words)
        assert done.returncode == 1, words
        told = done.stderr.decode()
        assert "namespace moby is Docker's" in told and "--force" in told, (words, told)
    assert engine.state("box")["Status"] == "running"


def test_by_force_it_is_done_and_docker_sees_it(engine: Engine, lighterd: Lighterd) -> None:
    id_ = engine.run("--name", "box", IMAGE, "sleep", "1000")
    lighterd.ctl("-n", "moby", "pause", "--force", id_, check=True)
    engine.await_state("box", Status="paused")
    lighterd.ctl("-n", "moby", "resume", "--force", id_, check=True)
    engine.await_state("box", Status="running")
    lighterd.ctl("-n", "moby", "kill", "--force", id_, check=True)
    assert engine.await_state("box", Status="exited")["ExitCode"] == 137


def test_images_that_docker_keeps_in_the_manager_want_force_too(
    engine: Engine, lighterd: Lighterd
) -> None:
    engine.says("tag", IMAGE, "other:tag")
    try:
        shown = lighterd.ctl("-n", "moby", "images", "ls", "-q", check=True).stdout.decode().split()
        if not engine.snapshotter:
            assert shown == []
            return
        assert "docker.io/library/other:tag" in shown
        refused = lighterd.ctl("-n", "moby", "images", "rm", "docker.io/library/other:tag")
        assert refused.returncode == 1 and b"Docker's" in refused.stderr, refused.stderr
        assert "other" in engine.says("images", "--format", "{{.Repository}}")
        name = "docker.io/library/other:tag"
        lighterd.ctl("-n", "moby", "images", "rm", "--force", name, check=True)
        await_that(
            lambda: "other" not in engine.says("images", "--format", "{{.Repository}}"),
            30,
            "Docker sees that it is gone",
        )
    finally:
        engine.docker("rmi", "other:tag")
