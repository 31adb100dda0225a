"""Networks and faults: the manager killed at every point, plugins that fail in every way.

What holds each time: the other containers' networks are not touched, and when the dust has settled
no address, rule, interface, namespace or record is left of a container that is not there.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.proto.errors import LighterError
from tests import census, lives
from tests.harness import await_that, settled
from tests.networks import PLUGINS, NetworkedLighterd, run

IMAGE = "docker.io/library/busybox:test"

# `make test` takes every other one of both, `make soak` all.
AT_START = (
    *("network.recorded", "network.netns-made", "network.adding", "network.plugin-ended"),
    *("network.plugin-added:abort:3", "network.added", "network.files-written"),
    "create.shim-forked",
)
AT_END = (
    *("network.releasing", "network.plugin-deleted:abort:2", "network.removed"),
    *("network.netns-gone", "network.record-gone"),
)
WHILE_IT_RUNS = ("network.plugin-ended", "network.connected")


@pytest.fixture(scope="module")
def machine() -> Iterator[NetworkedLighterd]:
    manager = NetworkedLighterd(census.Owners(), timeout_s=8).start()
    try:
        manager.import_busybox()
        manager.write("10-a.conflist", manager.bridge("a", "10.20.0.0/24"))
        manager.write("20-b.conflist", manager.bridge("b", "10.21.0.0/24"))
        yield manager
    finally:
        manager.close()


@pytest.fixture
def net(machine: NetworkedLighterd) -> Iterator[NetworkedLighterd]:
    yield machine
    if machine.process is None or machine.process.poll() is not None:
        machine.start()
    with machine.client() as client:
        for row in client.call("containers", "list", cursor="", limit=100)["containers"]:
            client.call("containers", "delete", id=row["id"], force=True)
    settled(machine.left_of_networks)
    for path in (*machine.conf_dir.glob("5*"), *machine.bin_dir.iterdir()):
        path.unlink()


def die_at(net: NetworkedLighterd, point: str) -> None:
    """Start the manager so that it dies there."""
    net.restart(FAULT=plan(point))


def plan(point: str) -> str:
    return point if ":" in point else f"{point}:abort"


def await_death(net: NetworkedLighterd) -> None:
    assert net.process is not None
    net.process.wait(30)
    net._await_spawner()


def remove(net: NetworkedLighterd, container_id: str) -> None:
    with net.client() as client:
        try:
            client.call("containers", "delete", id=container_id, force=True)
        except LighterError as err:
            assert err.code == "not-found", err


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "points", [AT_START[::2], pytest.param(AT_START, marks=pytest.mark.soak)], ids=["some", "all"]
)
def test_f37_killed_at_points_of_a_start(net: NetworkedLighterd, points: tuple[str, ...]) -> None:
    """One container runs all the time, and is asked after each kill."""
    run(net, "--network", "b", "-p", "8090:80", "stays")
    kept, own = net.addresses_of("stays"), set(net.left_of_networks())
    asked = net.ctl_argv("--connect-timeout", "1s", "run", "-d", "--network", "a", "-p", "8080:80")
    die_at(net, points[0])
    for point, following in zip(points, (*points[1:], ""), strict=True):
        with subprocess.Popen([*asked, IMAGE, "one", "sleep", "600"], stderr=subprocess.DEVNULL):
            await_death(net)
        # No recovery passes these points, so the next one is waited for at once.
        net.start(FAULT=plan(following) if following else "")
        remove(net, "one")
        settled(lambda: [thing for thing in net.left_of_networks() if thing not in own])
        assert net.addresses_of("stays") == kept, point


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "points", [AT_END[1::2], pytest.param(AT_END, marks=pytest.mark.soak)], ids=["some", "all"]
)
def test_f37_killed_at_points_of_an_end(net: NetworkedLighterd, points: tuple[str, ...]) -> None:
    run(net, "--network", "b", "-p", "8090:80", "stays")
    kept, own = net.addresses_of("stays"), set(net.left_of_networks())
    for point in points:
        run(net, "--network", "a", "-p", "8080:80", "one")
        die_at(net, point)
        removing = net.ctl_argv("--connect-timeout", "1s", "rm", "-f", "one")
        with subprocess.Popen(removing, stderr=subprocess.DEVNULL):
            await_death(net)
        net.start()
        remove(net, "one")
        settled(lambda: [thing for thing in net.left_of_networks() if thing not in own])
        assert net.addresses_of("stays") == kept, point


def test_killed_over_a_restart_it_has_its_port_and_address_again(net: NetworkedLighterd) -> None:
    """What the cut-short start has taken is its own, and nobody's else."""
    run(net, "--network", "a", "-p", "8080:80", "--ip", "10.20.0.9", "web")
    die_at(net, "network.plugin-added")
    asked = net.ctl_argv("--connect-timeout", "1s", "restart", "-t", "0", "web")
    with subprocess.Popen(asked, stderr=subprocess.DEVNULL):
        await_death(net)
    net.start()
    await_that(lambda: _state(net, "web") == "running", 20, "the restart is finished")
    assert net.addresses_of("web") == ["10.20.0.9"]
    await_that(lambda: len(list((net.root / "network").glob("*"))) == 1, 20, "one network is left")


def test_all_are_stopped_when_their_networks_are_given_back(net: NetworkedLighterd) -> None:
    """Those of what has just ended too. Who removes the package ends the manager next."""
    begun = net.bin_dir / "begun"
    slow = f"[[ $CNI_COMMAND != DEL ]] || {{ touch {begun}; sleep 1.5; }}"
    net.plugin("bridge", _pass_on("bridge", slow))
    run(net, "--rm", "--network", "a", "-p", "8080:80", "over")
    run(net, "--network", "b", "web")
    net.ctl("tasks", "kill", "-s", "KILL", "over", check=True)
    await_that(begun.exists, 15, "its network is being given back")
    net.ctl("system", "stop-containers", "--timeout", "1s", check=True)
    net.stop()
    assert net.left_of_networks() == []


def _state(net: NetworkedLighterd, container_id: str) -> str:
    with net.client() as client:
        try:
            return str(client.call("tasks", "get", id=container_id)["task"]["status"])
        except LighterError as err:
            assert err.code == "not-found", err
            return ""


def test_killed_while_a_running_container_is_connected(net: NetworkedLighterd) -> None:
    run(net, "bare")
    for point in WHILE_IT_RUNS:
        die_at(net, point)
        argv = net.ctl_argv("--connect-timeout", "1s", "network", "connect", "a", "bare")
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL):
            await_death(net)
        net.start()
        # Either it is attached whole, or nothing of it is there.
        await_that(
            lambda: not any("pending" in text for text in _pending(net)), 20, f"settled: {point}"
        )
        if net.task("bare")["networks"]:
            net.ctl("network", "disconnect", "a", "bare", check=True)
        net.ctl("network", "connect", "a", "bare", check=True)
        net.ctl("network", "disconnect", "a", "bare", check=True)
    assert net.ctl("exec", "bare", "true").returncode == 0


def _pending(net: NetworkedLighterd) -> list[str]:
    """Attachments that plugins have begun and not ended, by the records."""
    found = []
    for path in (net.root / "network").glob("*/record.json"):
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        found += [f"pending {one['ifname']}" for one in record["attached"] if one["pending"]]
    return found


def _pass_on(name: str, before: str) -> str:
    """A plugin that does something, then what the real one does."""
    return f'#!/bin/bash\n{before}\nexec {PLUGINS}/{name} "$@"\n'


def test_f37_killed_while_a_plugin_hangs(net: NetworkedLighterd) -> None:
    """Its ADD had reserved the address; it is ended, and the address is free."""
    mark = net.bin_dir / "hangs"
    net.plugin(
        "bridge",
        "#!/bin/bash\n"
        f'[[ $CNI_COMMAND == ADD ]] || exec {PLUGINS}/bridge "$@"\n'
        f"{PLUGINS}/bridge > /dev/null\n"
        f"echo $$ > {mark}\nsleep 600\n",
    )
    argv = net.ctl_argv("--connect-timeout", "1s", "run", "-d", "--network", "a", IMAGE, "one")
    with subprocess.Popen([*argv, "sleep", "600"], stderr=subprocess.DEVNULL):
        await_that(lambda: mark.exists() and mark.read_text().strip(), 15, "the plugin hangs")
        pid = int(mark.read_text())
        net.kill9()
    assert os.path.exists(f"/proc/{pid}")
    net.start()
    await_that(lambda: lives.process_state(pid) in ("", "Z"), 10, "the stray plugin is ended")
    remove(net, "one")
    settled(net.left_of_networks)


def test_f79_a_plugin_that_hangs_meets_its_deadline(net: NetworkedLighterd) -> None:
    net.plugin("bridge", _pass_on("bridge", "[[ $CNI_COMMAND != ADD ]] || sleep 600"))
    refused = net.ctl("run", "--network", "a", IMAGE, "one", "true")
    assert refused.returncode == 125  # 124 is for ctl's own --timeout
    assert "it did not end in 8 s" in refused.stderr.decode()
    listed = net.ctl("ps", "-a")
    assert listed.returncode == 0
    settled(net.left_of_networks)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("not json at all", 0, "its answer is no JSON: not json at all"),
        ("[1]", 0, "its answer is no object"),
        ('{"code": 100, "msg": "no room", "details": "rack 4"}', 0, "no room rack 4"),
        ('{"code": 100, "msg": "no room", "details": "rack 4"}', 1, "no room rack 4"),
        ("", 0, "no plugin gave a result"),
        ('{"cniVersion": "1.0.0", "ips": [{"address": "nowhere"}]}', 0, "a result that is none"),
        ("", 7, "the last line"),
    ],
)
def test_f79_what_a_plugin_says_is_judged(
    net: NetworkedLighterd, answer: str, code: int, said: str
) -> None:
    """The list is undone each time, in reverse, the plugins that were not reached too."""
    calls = net.bin_dir / "calls"
    head = f"#!/bin/bash\ncat > /dev/null\necho $CNI_COMMAND >> {calls}\n"
    text = f"{head}[[ $CNI_COMMAND == ADD ]] || exit 0\n"
    net.plugin("odd", f"{text}echo -n '{answer}'\necho the last line >&2\nexit {code}\n")
    plugins = [{"type": "odd"}, {"type": "odd"}]
    net.write("50-odd.conflist", {"cniVersion": "1.0.0", "name": "odd", "plugins": plugins})
    refused = net.ctl("run", "--network", "odd", IMAGE, "one", "true")
    assert refused.returncode == 125
    assert said in refused.stderr.decode()
    settled(net.left_of_networks)
    assert calls.read_text().split()[-2:] == ["DEL", "DEL"]


def test_f79_a_failing_chain_is_undone_and_its_record_kept_until_that_works(
    net: NetworkedLighterd,
) -> None:
    broken = net.bin_dir / "broken"
    broken.touch()
    net.plugin("last", f"#!/bin/sh\ntest ! -e {broken} || exit 1\n")
    document = net.bridge("chain", "10.22.0.0/24")
    document["plugins"].append({"type": "last"})
    net.write("50-chain.conflist", document)
    refused = net.ctl("run", "--network", "chain", "-p", "8080:80", IMAGE, "one", "true")
    assert "plugin last" in refused.stderr.decode()
    # Its DEL fails too: what the others did is undone, and this one is asked again.
    assert [thing for thing in net.left_of_networks() if "record" in thing or "network/" in thing]
    assert not [thing for thing in net.left_of_networks() if thing.startswith("address")]
    broken.unlink()
    settled(net.left_of_networks)


def test_f79_the_configuration_changes_or_goes_while_a_container_runs(
    net: NetworkedLighterd,
) -> None:
    path = net.write("50-gone.conflist", net.bridge("gone", "10.22.0.0/24"))
    run(net, "--network", "gone", "one")
    run(net, "--network", "gone", "two")
    path.write_text("{ no JSON")
    unusable = net.ctl("network", "ls")
    assert "it is no JSON" in unusable.stderr.decode()
    net.ctl("rm", "-f", "one", check=True)
    path.unlink()
    net.ctl("rm", "-f", "two", check=True)
    settled(net.left_of_networks)
    missing = net.ctl("run", "--network", "gone", IMAGE, "one", "true")
    assert "find network gone" in missing.stderr.decode()


def test_f79_a_missing_plugin_names_where_it_was_looked_for(net: NetworkedLighterd) -> None:
    net.write("50-none.conf", {"cniVersion": "1.0.0", "name": "none-such", "type": "lt-missing"})
    refused = net.ctl("run", "--network", "none-such", IMAGE, "one", "true")
    assert "find CNI plugin lt-missing" in refused.stderr.decode()
    assert "/opt/cni/bin" in refused.stderr.decode()
    listed = net.ctl("network", "ls")
    assert "find CNI plugin lt-missing" in listed.stderr.decode()


def test_f79_secrets_of_a_configuration_are_not_logged(net: NetworkedLighterd) -> None:
    net.plugin("odd", '#!/bin/sh\ntest "$CNI_COMMAND" != ADD || exit 3\n')
    secret = "hunter2-of-the-network"
    net.write("50-odd.conf", {"cniVersion": "1.0.0", "name": "odd", "type": "odd", "key": secret})
    net.ctl("run", "--network", "odd", IMAGE, "one", "true")
    assert secret not in net.log.read_text(errors="replace")


def test_version_1_1_has_status_and_the_highest_common_version(net: NetworkedLighterd) -> None:
    net.plugin(
        "new",
        "#!/bin/bash\nconfig=$(cat)\ncase $CNI_COMMAND in\n"
        'STATUS) echo \'{"code": 50, "msg": "its controller is away"}\'; exit 1;;\n'
        'ADD) [[ $config == *\'"cniVersion": "1.1.0"\'* ]] || exit 1\n'
        'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.40.0.2/24"}]}\';;\nesac\n',
    )
    versions = {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"]}
    document = {**versions, "name": "new", "plugins": [{"type": "new"}]}
    net.write("50-new.conflist", document)
    assert "its controller is away" in net.ctl("network", "ls").stderr.decode()
    run(net, "--network", "new", "one")
    assert net.addresses_of("one") == ["10.40.0.2"]


def test_f56_a_namespace_that_was_taken_away_by_hand(net: NetworkedLighterd) -> None:
    """Plugins that find none cannot tell which rules were theirs: the manager knows."""
    run(net, "--network", "a", "-p", "8080:80", "one")
    (path,) = (net.state / "netns").glob("*")
    subprocess.run(["umount", str(path)], check=True)
    checked = net.ctl("network", "check", "one")
    assert "no namespace any more" in checked.stdout.decode()
    net.ctl("rm", "-f", "one", check=True)
    settled(net.left_of_networks)


def test_f55_after_a_reboot_the_addresses_are_free(net: NetworkedLighterd) -> None:
    """The state directory, tasks and namespaces are gone; records say another boot."""
    run(net, "--network", "a", "one")
    net.kill9()
    database = net.root / "lighter.db"
    for pid in net.shims():
        subprocess.run(["kill", "-9", str(pid)], check=False)
    _rewrite_boot(net, database)
    (path,) = (net.state / "netns").glob("*")
    subprocess.run(["umount", str(path)], check=True)
    path.unlink()
    net.start()
    settled(net.left_of_networks)


def _rewrite_boot(net: NetworkedLighterd, database: Path) -> None:
    import sqlite3

    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE tasks SET boot_id = 'another'")
    connection.close()
    for path in (net.root / "network").glob("*/record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "boot_id": "another"}))


def test_f41_a_lost_shims_network_is_given_back(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    (shim,) = net.shims()
    subprocess.run(["kill", "-9", str(shim)], check=True)
    settled(net.left_of_networks)
    assert net.task("one")["cause"] == "lost-shim"


def test_a_lost_database_does_not_take_a_running_containers_network(
    net: NetworkedLighterd,
) -> None:
    run(net, "--network", "a", "one")
    (address,) = net.addresses_of("one")
    net.kill9()
    saved = net.base / "saved"
    saved.mkdir()
    for path in net.root.glob("lighter.db*"):
        path.rename(saved / path.name)
    try:
        net.start()
        await_that(lambda: b"one" in net.ctl("ps", "-q").stdout, 20, "it is adopted")
        assert net.addresses_of("one") == [address]
        net.host("busybox", "ping", "-c", "1", "-W", "3", address)
        net.ctl("tasks", "kill", "-s", "KILL", "one", check=True)
        settled(net.left_of_networks)
        net.ctl("tasks", "rm", "one", check=True)
    finally:
        net.stop()
        for path in saved.iterdir():
            path.rename(net.root / path.name)
        net.start()


def test_reservations_without_an_owner_are_swept_at_a_start(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "one")
    net.stop()
    directory = net.addresses / "a"
    (directory / "10.20.0.200").write_text("")
    (directory / "10.20.0.201").write_text(f"{net.instance}-0123456789abcdef\r\neth0")
    (directory / "10.20.0.202").write_text("somebody-elses\r\neth0")
    net.start()
    for ours in ("10.20.0.200", "10.20.0.201"):
        await_that(lambda name=ours: not (directory / name).exists(), 10, f"{ours} is freed")
    assert (directory / "10.20.0.202").exists()
    (directory / "10.20.0.202").unlink()
    assert len(net.addresses_of("one")) == 1
