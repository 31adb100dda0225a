"""The rpms in a machine with systemd: upgrade and rollback under traffic, and removal."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.proto.release import OWN
from lighter.proto.version import VERSION
from tests.harness import await_that
from tests.packaging.rpms import ALIEN, ALIEN_PROTOCOLS, NEXT, built
from tests.systemd import inside
from tests.systemd.conftest import IMAGE, install
from tests.systemd.machine import Machine
from tests.underway import Traffic

OWN_PROTOCOLS = ", ".join(map(str, OWN.protocols))
IDLE = 200  # containers that only have to be there, beside those with traffic
RATE_MB = 20
API_GAP_S = 3.0  # promised is one second; the machine of a test is slow and shared


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same sources under a higher version."""
    return built(tmp_path_factory.mktemp("newer"), NEXT)


@pytest.fixture(scope="module")
def alien(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A version that speaks another protocol than ours, and nothing else."""
    return built(tmp_path_factory.mktemp("alien"), ALIEN, PROTOCOLS=ALIEN_PROTOCOLS)


@pytest.fixture(autouse=True)
def tidy(machine: Machine) -> Iterator[None]:
    yield
    if machine.path("/usr/bin/ctl").exists():
        inside.remove_all(machine)
        inside.nothing_is_left(machine)


def server(machine: Machine) -> str:
    version = json.loads(machine.run("ctl", "version", "--format", "json").stdout)
    return str(version["server"]["version"])


def test_f62_upgrade_and_rollback_are_not_noticed(
    machine: Machine,
    rpms: dict[str, Path],
    newer: dict[str, Path],
    record_property: Callable[[str, object], None],
) -> None:
    """No reset, no byte, no exit code is lost while the package is changed over and back."""
    traffic = Traffic(machine.run, IMAGE, idle=IDLE, rate_mb=RATE_MB).begin()
    traffic.mark("nothing")  # a gap that no manager is to blame for
    traffic.settle()
    for name, packages, how, version in (
        ("upgrade", newer, "-U", NEXT),
        ("rollback", {"lighter": rpms["lighter"]}, "-U --oldpackage", VERSION),
        ("restart", None, "", VERSION),
        ("kill -9", None, "kill", VERSION),
    ):
        main = machine.main_pid()
        traffic.mark(name)
        if how == "kill":
            machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lighterd")
        elif packages is None:
            machine.run("systemctl", "restart", "lighterd.service")
        else:
            install(machine, packages, how)
        inside.await_manager(machine, other_than=main)
        assert server(machine) == version
        traffic.settle()
    report = traffic.finish()
    record_property(f"traffic beside {IDLE} containers", json.dumps(report))
    gaps = report["api"]["longest_gap_after_s"]
    assert set(gaps) == {"nothing", "upgrade", "rollback", "restart", "kill -9"}
    assert max(gaps.values()) < API_GAP_S + 3 * gaps["nothing"], report
    # The core that nothing names any more stays: shims of that version may run, and going back is.
    installed = machine.run("rpm", "-qa").stdout
    assert f"lighter-core-{NEXT}-{NEXT}" in installed
    assert f"lighter-core-{VERSION}-{VERSION}" in installed


def test_f39_a_version_that_cannot_adopt_is_refused_and_the_one_before_serves_on(
    machine: Machine, rpms: dict[str, Path], alien: dict[str, Path]
) -> None:
    """Told before; installed all the same, nothing is lost and everybody is told."""
    pid = inside.start(machine, "a")
    small = alien["lighter"]
    machine.put(small, f"/var/tmp/{small.name}")
    said = machine.run("ctl", "upgrade", "check", f"/var/tmp/{small.name}", check=False)
    why = f"shim of default/a (version {VERSION}) speaks protocol {OWN_PROTOCOLS}"
    assert said.returncode == 1
    assert f"version {ALIEN} cannot take over from {VERSION}" in said.stdout
    assert f"{why}, version {ALIEN} speaks 99" in said.stdout
    main = machine.main_pid()
    install(machine, alien, "-U")
    await_that(lambda: machine.main_pid() not in (0, main), 30, "it was restarted")
    # The installed ctl becomes the one of the manager that stands in.
    await_that(
        lambda: machine.run("ctl", "tasks", "ls", check=False).returncode == 0, 30, "it serves"
    )
    try:
        status = machine.show("lighterd.service", "StatusText")["StatusText"]
        assert status.startswith(f"version {VERSION}, tasks adopted ")
        assert f"; stands in for version {ALIEN}: {why}" in status
        log = machine.journal("-u", "lighterd.service", "-n", "100")
        assert f"lighterd: version {ALIEN} cannot take over: {why}" in log
        assert machine.run("cat", f"/proc/{pid}/comm").stdout == "sh\n"
        assert machine.run("ctl", "exec", "a", "echo", "hello").stdout == "hello\n"
        machine.run("systemctl", "reload", "lighterd.service")
        # What it runs from stays, whoever asks.
        core = machine.run("rpm", "-e", "--nodeps", f"lighter-core-{VERSION}", check=False)
        assert core.returncode != 0 and "stays: shims or a manager run from it" in core.stderr
        # As at a shutdown, by the unit's own command; and as at a removal, by the scriptlet's.
        machine.run("systemctl", "stop", "lighter-containers.service")
        assert inside.tasks(machine)["a"]["status"] == "stopped"
        machine.run("systemctl", "start", "lighter-containers.service")
        machine.run("ctl", "rm", "-f", "a")
        # Nothing is left that only the old one understands: the installed version's turn.
        machine.run("systemctl", "restart", "lighterd.service")
        assert server(machine) == ALIEN
    finally:
        install(machine, {"lighter": rpms["lighter"]}, "-U --oldpackage")
        await_that(lambda: server(machine) == VERSION, 30, "this version is back")


@pytest.mark.soak
def test_removal_ends_a_deaf_container_at_the_end_of_its_minute(
    machine: Machine, rpms: dict[str, Path]
) -> None:
    """Which others do not wait for."""
    inside.start(machine, "deaf", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    inside.start(machine, "a", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 1; done")
    begun = time.monotonic()
    done = machine.run("rpm", "-e", "--nodeps", "lighter", timeout=200)
    assert time.monotonic() - begun >= 60
    first, last = [line for line in (done.stdout + done.stderr).splitlines() if "stopped" in line]
    assert first == "stopped default/a (exit status 9)"
    assert last == "stopped default/deaf (exit status 137)"
    install(machine, rpms, "-U --replacepkgs")
    machine.run("systemctl", "enable", "--now", "lighterd.service")
    assert inside.tasks(machine)["deaf"]["exit_status"] == 137
    inside.remove_all(machine)


def test_removal_stops_containers_in_time_and_leaves_data(
    machine: Machine, rpms: dict[str, Path]
) -> None:
    slow = ("sh", "-c", "trap 'sleep 2; exit 9' TERM; while :; do sleep 1; done")
    for name in ("a", "b"):
        inside.start(machine, name, *slow)
    done = machine.run("rpm", "-e", "--nodeps", "lighter", timeout=150)
    said = done.stdout + done.stderr
    for name in ("a", "b"):
        assert f"stopped default/{name} (exit status 9)" in said
    ours = ("pgrep", "-f", "^lighter-(shim|spawner(-waiting)?) |/usr/bin/lighterd")
    await_that(lambda: not machine.run(*ours, check=False).stdout, 20, "all processes have ended")
    assert not machine.path("/usr/bin/lighterd").exists()
    assert machine.run("test", "-e", "/var/lib/lighter/lighter.db").returncode == 0
    # Again: there is nothing to remove, and nothing is broken by asking.
    assert machine.run("rpm", "-e", "--nodeps", "lighter", check=False).returncode == 1
    # Once all has ended, nothing keeps the core.
    machine.run("rpm", "-e", f"lighter-core-{VERSION}")
    # Installed once more it finds its data, and what was stopped.
    install(machine, rpms, "-U --replacepkgs")
    machine.run("systemctl", "enable", "--now", "lighterd.service")
    found = inside.tasks(machine)
    assert {name: found[name]["exit_status"] for name in ("a", "b")} == {"a": 9, "b": 9}
