"""Services of a swarm of one: its agent makes, watches and replaces containers by itself.

Without published ports: the mesh that serves those wants ipvs of the kernel.
"""

import json
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.docker.engine import IMAGE, Engine
from tests.harness import Lighterd, await_that

pytestmark = pytest.mark.away
SERVICE = "web"
WORK = "echo $WHO $(cat /run/secrets/key) $(cat /plan); trap 'exit 0' TERM; sleep 1000 & wait"


@pytest.fixture
def swarm(engine: Engine) -> Iterator[Engine]:
    """dockerd refuses live-restore in a swarm."""
    engine.stop()
    engine.start(live_restore=False)
    try:
        engine.says("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
        yield engine
    finally:
        engine.docker("swarm", "leave", "--force")
        engine.stop()
        engine.start()


def running(engine: Engine) -> set[str]:
    """The containers of tasks that run and should."""
    listed = engine.says(
        *("service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", SERVICE)
    ).split()
    tasks = json.loads(engine.says("inspect", "--type", "task", *listed)) if listed else []
    return {
        task["Status"]["ContainerStatus"]["ContainerID"]
        for task in tasks
        if task["Status"]["State"] == "running"
    }


def await_replicas(engine: Engine, count: int, *, without: Collection[str] = ()) -> set[str]:
    def here() -> bool:
        found = running(engine)
        return len(found) == count and found.isdisjoint(without)

    await_that(here, 90, f"{count} run, none of {without or 'any'}")
    return running(engine)


@pytest.mark.parametrize("host", ["26-snapshotter"], indirect=True)
@pytest.mark.timeout(300)
def test_a_service_is_made_scaled_mended_and_removed(
    swarm: Engine, lighterd: Lighterd, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "plan").write_text("public")
    swarm.says("secret", "create", "key", str(tmp_path / "key"))
    swarm.says("config", "create", "plan", str(tmp_path / "plan"))
    swarm.says(
        *("service", "create", "-d", "--no-resolve-image", "--name", SERVICE, "--replicas", "2"),
        *("--secret", "key", "--config", "source=plan,target=/plan", "--env", "WHO={{.Task.Slot}}"),
        *("--limit-memory", "64m", "--restart-delay", "0s", IMAGE, "sh", "-c", WORK),
    )
    first = await_replicas(swarm, 2)
    words = {"1 secret public", "2 secret public"}
    await_that(lambda: {swarm.says("logs", id_) for id_ in first} == words, 30, f"they say {words}")
    with lighterd.client("moby") as client:
        assert {task["id"] for task in client.call("tasks", "list")["tasks"]} == first
    lighterd.restart()
    await_that(
        lambda: all(swarm.docker("top", id_).returncode == 0 for id_ in first),
        60,
        "dockerd reaches them again",
    )
    assert running(swarm) == first
    swarm.says("service", "scale", "-d", f"{SERVICE}=3")
    three = await_replicas(swarm, 3)
    assert first < three
    lost = three - first
    lighterd.kill9()
    os.kill(int(swarm.state(*lost)["Pid"]), signal.SIGKILL)
    lighterd.start()
    mended = await_replicas(swarm, 3, without=lost)
    assert first < mended
    swarm.says("service", "update", "-d", "--force", "--update-parallelism", "3", SERVICE)
    await_replicas(swarm, 3, without=mended)
    swarm.says("service", "rm", SERVICE)
    await_that(lambda: not swarm.says("ps", "-aq"), 60, "its containers are removed")
