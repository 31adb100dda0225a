"""The machine's end: containers are stopped in time, whatever state their manager is in."""

import time
from collections.abc import Iterator

import pytest

from tests.systemd import inside
from tests.systemd.machine import Machine

# Takes its time after the signal, and says so: what is not given the time cannot exit with 9.
SLOW = ("sh", "-c", "trap 'sleep 3; echo stopped in time; exit 9' TERM; while :; do sleep 1; done")
DEAF = ("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
OFF_S = 60.0


@pytest.fixture(autouse=True)
def tidy(machine: Machine) -> Iterator[None]:
    yield
    machine.run("systemctl", "start", "lighterd.service")
    inside.remove_all(machine)
    inside.nothing_is_left(machine)


def ended_well(machine: Machine, name: str) -> None:
    task = inside.tasks(machine)[name]
    assert (task["status"], task["exit_status"], task["cause"]) == ("stopped", 9, ""), task
    assert machine.run("ctl", "logs", name).stdout == "stopped in time\n"


def test_stop_containers_stops_those_of_all_namespaces_at_once(machine: Machine) -> None:
    machine.run("ctl", "-n", "other", "images", "import", "/var/lib/image.tar")
    for name in ("a", "b"):
        inside.start(machine, name, *SLOW)
    inside.start(machine, "c", *SLOW, namespace="other")
    inside.start(machine, "paused", *SLOW)
    machine.run("ctl", "pause", "paused")
    inside.start(machine, "deaf", *DEAF)
    begun = time.monotonic()
    done = machine.run("ctl", "system", "stop-containers", "--timeout", "8s")
    took_s = time.monotonic() - begun
    assert sorted(done.stdout.splitlines()) == [
        "stopped default/a (exit status 9)",
        "stopped default/b (exit status 9)",
        "stopped default/deaf (exit status 137)",
        "stopped default/paused (exit status 9)",
        "stopped other/c (exit status 9)",
    ]
    assert 8 <= took_s < 30, "the deaf one has its 8 s, beside the others"
    for name in ("a", "b", "paused"):
        ended_well(machine, name)
    again = machine.run("ctl", "system", "stop-containers")
    assert (again.stdout, again.stderr) == ("", "")
    machine.run("ctl", "-n", "other", "rm", "-f", "c")


def test_a_container_whose_shim_hangs_is_stopped_too(machine: Machine) -> None:
    inside.start(machine, "a", *SLOW)
    machine.run("kill", "-STOP", str(inside.shims(machine)["a"]))
    done = machine.run("ctl", "system", "stop-containers", "--timeout", "5s")
    assert done.stdout == "stopped default/a (exit status 137)\n"
    assert inside.tasks(machine)["a"]["cause"] == "lost-shim"


def test_a_manager_is_run_for_it_when_none_serves(machine: Machine) -> None:
    inside.start(machine, "a", *SLOW)
    machine.run("systemctl", "stop", "lighterd.service")
    ask = ("ctl", "--connect-timeout", "1s", "system", "stop-containers")
    refused = machine.run(*ask, check=False)
    assert refused.returncode == 1
    assert "no manager answers" in refused.stderr
    stop = (*ask, "--manager")
    bad = machine.run(*stop, "/bin/false", check=False)
    assert (bad.returncode, "run /bin/false: it ended with 1" in bad.stderr) == (1, True)
    done = machine.run(*stop, "/usr/bin/lighterd")
    assert done.stdout == "stopped default/a (exit status 9)\n"
    assert machine.run("pgrep", "-f", "bin/lighterd", check=False).stdout == "", "it stays"
    machine.run("systemctl", "start", "lighterd.service")
    ended_well(machine, "a")


def shut_down(machine: Machine) -> None:
    """Power off and on again."""
    took_s = machine.poweroff()
    print(f"off after {took_s:.1f} s")
    assert took_s < OFF_S
    machine.power_on()
    inside.await_manager(machine, other_than=0)


def test_at_shutdown_containers_get_their_signal_and_their_time(machine: Machine) -> None:
    for name in ("a", "b"):
        inside.start(machine, name, *SLOW)
    shut_down(machine)
    for name in ("a", "b"):
        ended_well(machine, name)
    # The manager lived until they had ended: their exits were recorded by it, not found at a boot.
    log = machine.journal("-u", "lighterd.service")
    assert "recover task namespace=default id=a state=stopped shim=reboot record=False" in log


def test_at_shutdown_with_the_manager_down_they_get_it_too(machine: Machine) -> None:
    inside.start(machine, "a", *SLOW)
    machine.run("systemctl", "stop", "lighterd.service")
    shut_down(machine)
    ended_well(machine, "a")


def test_f55_after_a_power_cut_tasks_read_reboot(machine: Machine) -> None:
    inside.start(machine, "a")
    machine.cut_power()
    machine.power_on()
    inside.await_manager(machine, other_than=0)
    task = inside.tasks(machine)["a"]
    assert (task["status"], task["exit_status"], task["cause"]) == ("stopped", 255, "reboot")
    machine.run("ctl", "tasks", "delete", "a")
    machine.run("ctl", "tasks", "start", "-d", "a")
    assert inside.tasks(machine)["a"]["status"] == "running"
