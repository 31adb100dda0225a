"""200 containers at once, listed in one call that none of them can hold up."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests import lives
from tests.client import Client
from tests.harness import Lighterd, await_that
from tests.integration.test_adoption import shim_of
from tests.lives import NO_STDIO, ask
from tests.stuckfs import StuckFs

MANY = 200
AT_ONCE = 4


@pytest.fixture
def stuck(lighterd: Lighterd) -> Iterator[StuckFs]:
    with StuckFs(lighterd.base / "stuck") as stuck:
        yield stuck


def begin_all(lighterd: Lighterd, image: str, names: list[str]) -> None:
    failures: list[BaseException] = []

    def begin(share: list[str]) -> None:
        try:
            with lighterd.client() as client:
                for name in share:
                    client.call(
                        *("containers", "create"),
                        id=name,
                        image=image,
                        args=["sleep", "1000"],
                        log={"driver": "none"},
                    )
                    client.call("tasks", "create", id=name, timeout_s=60, **NO_STDIO)
                    client.call("tasks", "start", id=name, timeout_s=60)
        except BaseException as err:
            failures.append(err)

    shares = [names[start::AT_ONCE] for start in range(AT_ONCE)]
    threads = [threading.Thread(target=begin, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def listed(client: Client) -> dict[str, str]:
    began = time.monotonic()
    tasks = client.call("tasks", "list", timeout_s=10)["tasks"]
    assert time.monotonic() - began < lives.LISTED_S
    return {row["id"]: row["status"] for row in tasks}


def test_no_stuck_container_holds_up_the_list_of_200(
    lighterd: Lighterd, busybox: str, stuck: StuckFs
) -> None:
    names = [f"c{number}" for number in range(MANY)]
    begin_all(lighterd, busybox, names)
    mount = {
        "type": "bind",
        "source": str(stuck.path),
        "destination": "/stuck",
        "options": ["rbind"],
    }
    lives.begin(lighterd, busybox, "stuck", "cat", "/stuck/x", mounts=[mount])
    await_that(lambda: stuck.waiting, 20, "it waits for what never comes")
    stopped = shim_of(lighterd, "c0")
    lives.hold_still(stopped)
    try:
        with lighterd.client() as client:
            client.call("tasks", "kill", id="stuck", exec_id="", signal=9, all=False)
            running = dict.fromkeys([*names, "stuck"], "running")
            assert listed(client) == {**running, "c0": "unknown"}
            lighterd.kill9()
        lighterd.start()
        with lighterd.client() as client:
            wanted = {**running, "c0": "unknown"}
            await_that(lambda: listed(client) == wanted, 20, "all are listed again")
    finally:
        os.kill(stopped, signal.SIGCONT)
        stuck.free()
    assert ask(lighterd, "tasks.wait", id="stuck", exec_id="")["exit_status"] == 137
