"""The spawner outlives its manager for the next one, when that would start just such a one."""

import os
import statistics
import subprocess
from collections.abc import Callable

import pytest

from tests import lives
from tests.harness import Lighterd, await_that, kill_by_pidfd
from tests.integration.test_shim_memory import GOAL_PSS_BYTES, exec_once, rollup
from tests.lives import ask
from tests.processes import spawners, with_title

UNDER_MASK = ["/bin/sh", "-c", 'umask 027; exec "$@"', "sh"]
UNDER_LIMIT = ["/bin/sh", "-c", 'ulimit -c 4711; exec "$@"', "sh"]
NICE = ["/usr/bin/nice", "-n", "1"]


def spawner_of(lighterd: Lighterd) -> int:
    """Once it serves."""
    await_that(lambda: spawners(lighterd.instance), 30, "a spawner serves")
    (pid,) = spawners(lighterd.instance)
    assert ask(lighterd, "system.processes")["processes"]["spawner"]["pid"] == pid
    return pid


def waiting(lighterd: Lighterd) -> list[int]:
    return with_title(f"lighter-spawner-waiting --instance {lighterd.instance}")


def end_manager(lighterd: Lighterd, how: str) -> None:
    (lighterd.kill9 if how == "kill" else lighterd.stop)()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_one_spawner_serves_a_manager_after_the_other(
    lighterd: Lighterd, busybox: str, how: str
) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    spawner = spawner_of(lighterd)
    for n in range(5):
        end_manager(lighterd, how)
        lighterd.start()
        lives.begin(lighterd, busybox, f"c{n}", "sleep", "1000")
        assert spawner_of(lighterd) == spawner
    assert {row["status"] for row in ask(lighterd, "tasks.list")["tasks"]} == {"running"}
    assert lighterd.log.read_text().count(f"spawner taken over pid={spawner}") == 5


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_twenty_managers_of_one_spawner(lighterd: Lighterd, busybox: str) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    spawner = spawner_of(lighterd)
    for n in range(20):
        end_manager(lighterd, "kill" if n % 3 else "stop")
        lighterd.start()
        lives.begin(lighterd, busybox, f"c{n}", "sleep", "1000")
        assert spawner_of(lighterd) == spawner


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_without_containers_nothing_waits(lighterd: Lighterd, how: str) -> None:
    spawner_of(lighterd)
    end_manager(lighterd, how)
    assert not waiting(lighterd)
    lighterd.start()
    assert "taken over" not in lighterd.log.read_text()


@pytest.mark.parametrize(
    ("prefix", "environ"),
    [
        (UNDER_MASK, {}),
        (UNDER_LIMIT, {}),
        (NICE, {}),
        ([], {"FAULT_TRACE": "/dev/null"}),
        ([], {"PATH": os.environ["PATH"] + ":/nowhere"}),
    ],
    ids=["umask", "limit", "nice", "fault points", "path"],
)
def test_a_manager_started_in_another_way_has_a_spawner_of_its_own(
    lighterd: Lighterd, busybox: str, prefix: list[str], environ: dict[str, str]
) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    before = spawner_of(lighterd)
    lighterd.kill9()
    await_that(lambda: waiting(lighterd) == [before], 30, "it waits")
    lighterd.prefix = prefix
    lighterd.start(**environ)
    await_that(lambda: lives.process_state(before) in ("", "Z"), 20, "the other one ends")
    lives.begin(lighterd, busybox, "new", "sleep", "1000")
    assert spawner_of(lighterd) != before
    lives.await_task(lighterd, "c", "running")


def test_of_two_managers_at_once_one_has_it(lighterd: Lighterd, busybox: str) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    spawner = spawner_of(lighterd)
    lighterd.kill9()
    rivals = [
        subprocess.Popen([*lighterd._argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        await_that(lambda: sum(one.poll() is None for one in rivals) == 1, 60, "one is left")
        await_that(lambda: spawners(lighterd.instance) == [spawner], 30, "it has the spawner")
        await_that(lambda: lighterd.ctl("ps").returncode == 0, 30, "it answers")
    finally:
        for one in rivals:
            one.terminate()
            assert one.stderr is not None
            with one.stderr:
                said = one.stderr.read()
            assert one.wait(30) == 0 or b"holds it" in said
    await_that(lambda: waiting(lighterd) == [spawner], 30, "it waits again")
    lighterd.start()
    assert spawner_of(lighterd) == spawner


def test_one_that_does_not_answer_is_not_waited_for(lighterd: Lighterd, busybox: str) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    mute = spawner_of(lighterd)
    lighterd.kill9()
    lives.hold_still(mute)
    lighterd.start()
    lives.begin(lighterd, busybox, "new", "sleep", "1000")
    assert spawner_of(lighterd) != mute
    await_that(lambda: lives.process_state(mute) in ("", "Z"), 20, "it is ended")
    lives.await_task(lighterd, "c", "running")


def test_one_that_was_taken_over_is_replaced_when_it_dies(lighterd: Lighterd, busybox: str) -> None:
    """It is no child of the manager that has it."""
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    before = spawner_of(lighterd)
    lighterd.kill9()
    lighterd.start()
    assert spawner_of(lighterd) == before
    kill_by_pidfd(before)
    await_that(lambda: spawners(lighterd.instance) not in ([], [before]), 30, "another")
    lives.begin(lighterd, busybox, "new", "sleep", "1000")
    assert spawner_of(lighterd) != before


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("shims", "managers", "most_bytes"),
    [
        (20, 4, 3.0e6),  # 2.4 on 3.11, and 3.8 with a spawner for each manager
        pytest.param(100, 5, GOAL_PSS_BYTES, marks=pytest.mark.soak),
        pytest.param(100, 20, GOAL_PSS_BYTES, marks=pytest.mark.soak),
    ],
)
def test_memory_per_shim_of_several_managers(
    lighterd: Lighterd,
    busybox: str,
    record_property: Callable[[str, object], None],
    shims: int,
    managers: int,
    most_bytes: float,
) -> None:
    for n in range(shims):
        if n and n % (shims // managers) == 0:
            lighterd.kill9()
            lighterd.start()
        lives.begin(lighterd, busybox, f"c{n}", "sleep", "1000")
        with lighterd.client() as client:
            exec_once(client, f"c{n}")
    found = lighterd.shims()
    assert len(found) == shims
    pss = statistics.mean(rollup(pid)["Pss"] for pid in found)
    record_property(f"PSS of a shim in MB, {managers} managers", round(pss / 1e6, 2))
    assert pss <= most_bytes
