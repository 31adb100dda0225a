"""lighterd.service: what it starts, what its end means, and that containers notice none of it."""

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.daemon.grpc.pb import version_pb2
from lighter.proto.version import VERSION
from tests.grpc.client import Api
from tests.harness import await_that
from tests.packaging.conftest import COMPAT
from tests.systemd import inside
from tests.systemd.machine import Machine

CONFIG = "/etc/lighter/config.toml"


@pytest.fixture(autouse=True)
def tidy(machine: Machine) -> Iterator[None]:
    """Each test ends with a manager that serves; its containers are removed, and leave nothing."""
    yield
    machine.run("systemctl", "start", "lighterd.service")
    inside.remove_all(machine)
    inside.nothing_is_left(machine)


def test_the_service_is_up(machine: Machine) -> None:
    shown = machine.show("lighterd.service", "ActiveState", "StatusText", "WatchdogUSec")
    assert shown["ActiveState"] == "active"
    version = json.loads(machine.run("ctl", "version", "--format", "json").stdout)
    assert shown["StatusText"] == f"version {version['server']['version']}, tasks adopted 0/0"
    assert shown["WatchdogUSec"] == "1min"
    active = machine.run("systemctl", "is-active", "lighter-containers.service").stdout
    assert active.strip() == "active"


def test_f62_the_unit_says_what_keeps_containers_alive(machine: Machine) -> None:
    wanted = {
        "KillMode": "process",
        "Delegate": "yes",
        "Restart": "always",
        "OOMScoreAdjust": "-999",
        "TasksMax": "infinity",
        "StartLimitIntervalUSec": "0",
        "Type": "notify",
        "RestartUSec": "20ms",
        "TimeoutStopUSec": "30s",
        "TimeoutStartUSec": "2min",
        "TimeoutAbortUSec": "10s",
    }
    assert machine.show("lighterd.service", *wanted) == wanted


def test_the_manager_is_alone_in_its_unit(machine: Machine) -> None:
    pid = inside.start(machine, "a")
    main = machine.main_pid()
    unit = machine.show("lighterd.service", "ControlGroup")["ControlGroup"]
    hierarchy = "/sys/fs/cgroup/unified"
    if machine.run("test", "-e", hierarchy, check=False).returncode:
        hierarchy = "/sys/fs/cgroup"
    procs = ("cat", f"{hierarchy}{unit}/cgroup.procs")
    # What it runs for a moment may be there too.
    await_that(
        lambda: machine.run(*procs).stdout.split() == [str(main)], 20, "it is alone in its cgroup"
    )
    below = machine.run("find", f"{hierarchy}{unit}", "-mindepth", "1", "-type", "d").stdout
    assert not below, "a cgroup below the unit makes its next start fail on v2 (219/CGROUP)"
    (scope,) = inside.scopes(machine)
    shim = inside.shims(machine)["a"]
    assert inside.cgroup_of(machine, shim) == f"/lighter.slice/{scope}"
    assert re.fullmatch(r"/lighter/[0-9a-f]{8}/default/a", inside.cgroup_of(machine, pid))
    shown = machine.show(scope, "TasksMax", "OOMPolicy", "Before", "TimeoutStopUSec")
    assert shown["TasksMax"] == "infinity"
    assert shown["OOMPolicy"] == "continue"
    assert shown["TimeoutStopUSec"] == "10s"
    assert "lighter-containers.service" in shown["Before"].split()


def test_nobody_has_a_mount_namespace_of_its_own(machine: Machine) -> None:
    inside.start(machine, "a")
    shim = inside.shims(machine)["a"]
    pids = {"systemd": 1, "lighterd": machine.main_pid(), "shim": shim}
    found = {
        name: machine.run("readlink", f"/proc/{pid}/ns/mnt").stdout for name, pid in pids.items()
    }
    assert len(set(found.values())) == 1, found


def test_a_container_inherits_nothing_from_units(machine: Machine) -> None:
    """As in a manager without systemd: no variable, descriptor, limit or score of the unit's."""
    look = "env; echo --; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; ulimit -n; umask"
    ran = machine.run("ctl", "run", "--rm", inside.REFERENCE, "look", "sh", "-c", look)
    environ, _, rest = ran.stdout.partition("--\n")
    names = {line.partition("=")[0] for line in environ.splitlines()}
    assert names == {"PATH", "HOME", "PWD", "SHLVL"}
    # 0, 1, 2, and the one that ls reads the directory by.
    descriptors, score, files, mask = rest.split()
    assert (descriptors, score, mask) == ("4", "0", "0022")
    assert files == machine.show("lighterd.service", "LimitNOFILESoft")["LimitNOFILESoft"]
    inside.start(machine, "a")
    shim = inside.shims(machine)["a"]
    scores = [f"/proc/{pid}/oom_score_adj" for pid in (machine.main_pid(), shim)]
    assert len(set(machine.run("cat", *scores).stdout.split())) == 1, "a scope changes it for none"
    environ = machine.run("cat", f"/proc/{shim}/environ").stdout
    assert "NOTIFY_SOCKET" not in environ
    assert "WATCHDOG" not in environ


def test_a_restart_leaves_containers_their_spawner_and_its_scope(
    machine: Machine, record_property: Callable[[str, object], None]
) -> None:
    inside.start(machine, "a")
    before, (old_scope,) = inside.running(machine), inside.scopes(machine)
    machine.run("systemctl", "restart", "lighterd.service")
    assert inside.running(machine) == before
    inside.start(machine, "b")
    assert inside.scopes(machine) == {old_scope}, "the new manager has taken over the spawner"
    log = machine.journal("-u", "lighterd.service", "-n", "200")
    spawner = re.findall(r"spawner taken over pid=(\d+)", log)[-1]
    await_that(
        lambda: machine.show("lighterd", "StatusText")["StatusText"].endswith("adopted 2/2"),
        20,
        "the status tells of both",
    )
    machine.run("kill", "-9", spawner)
    await_that(
        lambda: len(inside.scopes(machine)) == 2, 20, "the next spawner has a scope of its own"
    )
    new_scopes = inside.scopes(machine) - {old_scope}
    inside.start(machine, "c")
    # With its last shim the old one's scope ends, and no one has to do it.
    machine.run("ctl", "rm", "-f", "a", "b")
    inside.await_scopes(machine, new_scopes)
    log = machine.journal("-u", "lighterd.service", "-n", "200")
    took = re.findall(r"spawner loaded pid=\d+ scope=True ms=(\d+)", log)
    record_property("ms until spawners in scopes had loaded", ", ".join(took))


def test_stop_leaves_containers(machine: Machine) -> None:
    pid = inside.start(machine, "a")
    machine.run("systemctl", "stop", "lighterd.service")
    assert machine.main_pid() == 0
    assert machine.run("cat", f"/proc/{pid}/comm").stdout == "sh\n"
    log = machine.journal("-u", "lighterd.service", "-n", "20")
    assert "Stopped lighterd.service" in log
    assert "remains running" not in log, "systemd found a process of ours in the unit"
    machine.run("systemctl", "start", "lighterd.service")
    assert inside.running(machine) == {"a": pid}


def test_a_killed_manager_is_started_again(machine: Machine) -> None:
    pid = inside.start(machine, "a")
    main = machine.main_pid()
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lighterd.service")
    inside.await_manager(machine, other_than=main)
    assert inside.running(machine) == {"a": pid}


def test_f62_a_storm_of_stops_kills_and_restarts(machine: Machine) -> None:
    for name in ("a", "b", "c"):
        inside.start(machine, name)
    before = inside.running(machine)
    dice = random.Random(62)
    for _ in range(20):
        act = dice.choice(("restart", "kill", "stop"))
        if act == "kill":
            kill = ("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lighterd.service")
            machine.run(*kill, check=False)  # refused when the last kill is being worked on
            time.sleep(dice.random() / 4)  # somewhere in the next one's start
        else:
            machine.run("systemctl", act, "lighterd.service")
    machine.run("systemctl", "start", "lighterd.service")
    inside.await_manager(machine, other_than=0)
    assert inside.running(machine) == before
    inside.start(machine, "d")
    for name in before:
        machine.run("ctl", "rm", "-f", name)
    # Scopes of the 20 that never had a shim, or have none any more, are gone.
    await_that(lambda: len(inside.scopes(machine)) == 1, 20, "one scope is left")


def test_the_watchdog_replaces_a_stopped_manager(machine: Machine) -> None:
    inside.drop_in(machine, "watchdog", "[Service]\nWatchdogSec=5\nTimeoutAbortSec=2\n")
    try:
        machine.run("systemctl", "restart", "lighterd.service")
        pid = inside.start(machine, "a")
        main = machine.main_pid()
        time.sleep(10)  # twice the time in which one that does not tell would be replaced
        assert machine.main_pid() == main, "a manager that is well was replaced"
        machine.run("kill", "-STOP", str(main))
        inside.await_manager(machine, other_than=main)
        assert inside.running(machine) == {"a": pid}
        assert "Watchdog timeout" in machine.journal("-u", "lighterd.service", "-n", "100")
    finally:
        inside.drop_in(machine, "watchdog", "")
        machine.run("systemctl", "restart", "lighterd.service")


def test_f78_reload_takes_over_the_log_level(machine: Machine) -> None:
    main = machine.main_pid()
    configure(machine, 'version = 3\n[debug]\nlevel = "debug"\n')
    try:
        machine.run("systemctl", "reload", "lighterd.service")
        log = machine.journal("-u", "lighterd.service", "-n", "20")
        assert "debug.level: info -> debug" in log
        machine.path(CONFIG).write_text('version = 3\n[debug]\nlevel = "warn"\n')
        machine.run("kill", "-HUP", str(main))
        await_that(
            lambda: (
                machine.show("lighterd", "ActiveState")["ActiveState"] == "active"
                and machine.run("ctl", "system", "reload").stdout == ""
            ),
            10,
            "a second reload finds nothing new",
        )
        assert machine.main_pid() == main
    finally:
        machine.path(CONFIG).unlink()
        machine.run("systemctl", "reload", "lighterd.service")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("version = 3\n[debug\n", f"{CONFIG}:2: "),
        ('version = 3\n[debug]\nlevel = "loud"\n', f"{CONFIG}:3: debug.level is 'loud'"),
        ("version = 3\n[debug]\nlevel = 7\n", f"{CONFIG}:3: debug.level is 7, expected text"),
        ("version = 99\n", f"{CONFIG}:1: version is 99"),
    ],
)
def test_f78_a_broken_file_keeps_the_old_configuration(
    machine: Machine, text: str, complaint: str
) -> None:
    main = machine.main_pid()
    configure(machine, 'version = 3\n[debug]\nlevel = "debug"\n')
    try:
        machine.run("systemctl", "reload", "lighterd.service")
        machine.path(CONFIG).write_text(text)
        failed = machine.run("systemctl", "reload", "lighterd.service", check=False)
        assert failed.returncode != 0
        log = machine.journal("-u", "lighterd.service", "-n", "20")
        assert re.search(rf"ctl\[\d+\]: ctl: read config {re.escape(complaint)}", log), log
        assert "the configuration stays as it was" in log
        said = machine.run("ctl", "system", "reload", check=False)
        assert said.returncode == 1
        assert complaint in said.stderr
        shown = machine.show("lighterd.service", "ActiveState", "SubState", "MainPID")
        expected = {"ActiveState": "active", "SubState": "running", "MainPID": str(main)}
        assert shown == expected
        # Still at level debug: the good file has nothing new for it.
        machine.path(CONFIG).write_text('version = 3\n[debug]\nlevel = "debug"\n')
        assert machine.run("ctl", "system", "reload").stdout == ""
    finally:
        machine.path(CONFIG).unlink()
        machine.run("systemctl", "reload", "lighterd.service")


def test_what_only_a_start_takes_over_is_named(machine: Machine) -> None:
    configure(machine, 'version = 3\n[plugins."io.lighter.v1"]\nsnapshotter = "native"\n')
    try:
        said = machine.run("ctl", "system", "reload")
        assert "plugins.io.lighter.v1.snapshotter is taken over at the next start" in said.stderr
    finally:
        machine.path(CONFIG).unlink()
        machine.run("systemctl", "reload", "lighterd.service")


def configure(machine: Machine, text: str) -> None:
    machine.path(CONFIG).parent.mkdir(parents=True, exist_ok=True)
    machine.path(CONFIG).write_text(text)


@pytest.mark.parametrize(
    ("instead", "why"),
    [("exit 1", "start spawner in a scope: failed"), ("exec sleep 1000", "it has not loaded")],
)
def test_without_a_scope_the_spawner_is_moved_by_hand(
    machine: Machine, instead: str, why: str
) -> None:
    program, kept = machine.path("/usr/bin/systemd-run"), machine.path("/usr/bin/systemd-run.kept")
    program.rename(kept)
    program.write_text(f"#!/bin/sh\n{instead}\n")
    program.chmod(0o755)
    try:
        machine.run("systemctl", "restart", "lighterd.service")
        inside.start(machine, "a")  # waits for the second spawner
        shim = inside.shims(machine)["a"]
        assert re.fullmatch(r"/lighter-shims/[0-9a-f]{8}", inside.cgroup_of(machine, shim))
        log = machine.journal("-u", "lighterd.service", "-n", "100")
        assert why in log
        assert "scope=False" in log
    finally:
        kept.rename(program)
        machine.run("systemctl", "restart", "lighterd.service")
    inside.start(machine, "b")
    assert "lighter-shims-" in inside.cgroup_of(machine, inside.shims(machine)["b"])


def test_in_containerds_place_the_api_is_where_it_was_too(
    machine: Machine, rpms: dict[str, Path]
) -> None:
    """The package beside a manager that is used already: a unit, a command, one more socket."""
    compat = rpms[COMPAT]
    machine.put(compat, f"/var/tmp/{compat.name}")
    inside.start(machine, "a")
    before = inside.running(machine)
    machine.run("rpm", "-i", "--nodeps", f"/var/tmp/{compat.name}")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "containerd.service")
        assert machine.show("containerd.service", "Id")["Id"] == "lighterd.service"
        assert inside.running(machine) == before
        for folder in ("lighter", "containerd"):
            # As the host sees the machine's files; a socket has no network.
            path = f"/proc/{machine.leader}/root/run/{folder}/containerd.sock"
            with Api(path) as api:
                assert api.call(version_pb2, "Version", "Version").version == VERSION
        assert machine.run("containerd", "--version").stdout.startswith("containerd lighter ")
    finally:
        machine.run("rpm", "-e", COMPAT)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "lighterd.service")
    assert inside.running(machine) == before
