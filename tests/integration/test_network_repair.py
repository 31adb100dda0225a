"""Networks of running containers, kept and mended: odd records, cut repairs, odd plugins."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import census, images, lives
from tests.harness import await_that, settled
from tests.networks import NetworkedLighterd, inside, run

IMAGE = "docker.io/library/busybox:test"
MAPPED = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")


@pytest.fixture(scope="module")
def machine() -> Iterator[NetworkedLighterd]:
    manager = NetworkedLighterd(census.Owners(), timeout_s=60).start()
    try:
        manager.import_busybox()
        manager.base.chmod(0o711)  # mapped ids pass through it
        manager.host("ip", "link", "set", "lo", "up")
        yield manager
    finally:
        manager.close()


@pytest.fixture
def net(machine: NetworkedLighterd) -> Iterator[NetworkedLighterd]:
    machine.write("10-a.conflist", machine.bridge("a", "10.20.0.0/24"))
    yield machine
    if machine.process is None or machine.process.poll() is not None:
        machine.start()
    with machine.client() as client:
        for row in client.call("containers", "list", cursor="", limit=100)["containers"]:
            client.call("containers", "delete", id=row["id"], force=True)
    settled(machine.left_of_networks)
    for path in (*machine.conf_dir.iterdir(), *machine.bin_dir.iterdir()):
        path.unlink()


def record_of(net: NetworkedLighterd) -> tuple[Path, dict[str, Any]]:
    (path,) = (net.root / "network").glob("*/record.json")
    return path, json.loads(path.read_text())


def await_death(net: NetworkedLighterd) -> None:
    assert net.process is not None
    net.process.wait(30)
    net._await_spawner()


def has_network(net: NetworkedLighterd, container_id: str, address: str) -> bool:
    return address in inside(net, container_id, "ip -o addr show eth0 2>&1 || true")


def test_a_record_of_a_later_release_is_read(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    (address,) = net.addresses_of("one")
    net.kill9()
    path, record = record_of(net)
    record["attached"][0]["network"] |= {"cniVersion": "1.2.0", "later": {}}
    record["attached"][0]["later"] = record["ports"][0]["later"] = 1
    path.write_text(json.dumps(record))
    net.start()
    assert net.addresses_of("one") == [address]
    assert b"8080" in net.ctl("port", "one", check=True).stdout
    run(net, "--network", "a", "two")
    assert net.addresses_of("two") != [address]
    path, record = next(
        (path, json.loads(path.read_text()))
        for path in (net.root / "network").glob("*/record.json")
        if "1.2.0" in path.read_text()
    )
    # This machine's plugins do not speak it: undone as it was made.
    record["attached"][0]["network"]["cniVersion"] = "1.0.0"
    net.kill9()
    path.write_text(json.dumps(record))
    net.start()


def test_a_damaged_record_keeps_what_its_container_has(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    (address,) = net.addresses_of("one")
    net.kill9()
    path, _ = record_of(net)
    path.write_text("{ no JSON")
    net.start()
    run(net, "--network", "a", "two")
    assert net.addresses_of("two") != [address]
    assert has_network(net, "one", address)
    assert (
        subprocess.run(["mountpoint", "-q", net.state / "netns" / path.parent.name]).returncode == 0
    )
    checked = net.ctl("network", "check", "one")
    assert checked.returncode == 1
    assert "record.json" in checked.stdout.decode()
    refused = net.ctl("network", "connect", "a", "one").stderr.decode()
    assert "record.json" in refused
    # Its end frees all that bears its key: the fixture looks at nat rules and addresses.
    net.ctl("rm", "-f", "one", check=True)
    await_that(lambda: not path.parent.exists(), 20, "the key is given up")
    # firewall's rules bear no key: without the record nobody can tell whose they were.
    net.host("iptables", "-F", "CNI-FORWARD")


@pytest.mark.parametrize(
    "point", ["network.reloading", "network.adding", "network.plugin-added:abort:2"]
)
def test_a_repair_cut_short_is_done_by_the_next_manager(net: NetworkedLighterd, point: str) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    (address,) = net.addresses_of("one")
    net.restart(FAULT=point if ":" in point else f"{point}:abort")
    argv = net.ctl_argv("--connect-timeout", "1s", "network", "reload", "--force", "one")
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL):
        await_death(net)
    net.start()
    await_that(lambda: net.addresses_of("one") == [address], 20, "it is attached again")
    assert has_network(net, "one", address)
    assert net.ctl("network", "check", "one").returncode == 0
    assert b"8080" in net.ctl("port", "one", check=True).stdout


def test_a_repair_that_fails_is_told_and_keeps_the_address(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "--ip", "10.20.0.77", "one")
    net.plugin("bridge", '#!/bin/sh\ntest "$CNI_COMMAND" != ADD || exit 3\n')
    for _ in range(2):
        assert net.ctl("network", "reload", "--force", "one").returncode != 0
        assert net.ctl("network", "check", "one").returncode == 1
    (net.bin_dir / "bridge").unlink()
    assert b"repaired" in net.ctl("network", "reload", "one", check=True).stdout
    assert net.addresses_of("one") == ["10.20.0.77"]
    assert has_network(net, "one", "10.20.0.77")


@pytest.mark.parametrize("restarts", [True, False], ids=["by its policy", "by hand"])
def test_mapped_ids_are_not_started_without_their_network(
    net: NetworkedLighterd, restarts: bool
) -> None:
    """Its maker dies between the task's create and its attachment."""
    policy = ("--restart", "always") if restarts else ()
    if restarts:
        run(net, *policy, *MAPPED, "--network", "a", "-p", "8080:80", "one")
        net.restart(FAULT="network.adding:abort")
        os.kill(lives.task(net, "one")["pid"], signal.SIGKILL)
        await_death(net)
    else:
        net.restart(FAULT="network.adding:abort")
        argv = net.ctl_argv("--connect-timeout", "1s", "run", "-d", *MAPPED, "--network", "a")
        with subprocess.Popen(
            [*argv, "-p", "8080:80", IMAGE, "one", "sleep", "600"], stderr=subprocess.DEVNULL
        ):
            await_death(net)
    net.start()
    if not restarts:
        assert lives.task(net, "one")["status"] == "created"
        net.ctl("start", "one", check=True)
    await_that(lambda: lives.task(net, "one")["status"] == "running", 30, "it runs")
    (address,) = net.addresses_of("one")
    assert has_network(net, "one", address)
    assert f"{address}\tone\n" in inside(net, "one", "cat /etc/hosts")
    assert b"8080" in net.ctl("port", "one", check=True).stdout


def test_a_network_that_hangs_keeps_no_other_waiting(net: NetworkedLighterd) -> None:
    go, marks = net.bin_dir / "go", net.bin_dir / "marks"
    net.plugin(
        "slow",
        f"#!/bin/bash\n[[ $CNI_COMMAND == ADD ]] || exit 0\necho >> {marks}\n"
        f"while [[ ! -e {go} ]]; do sleep 0.1; done\nexit 1\n",
    )
    net.write("20-slow.conf", {"cniVersion": "1.0.0", "name": "slow", "type": "slow"})
    argv = net.ctl_argv("run", "-d", "--network", "slow", IMAGE)
    hanging = [
        subprocess.Popen([*argv, f"slow-{n}", "true"], stderr=subprocess.DEVNULL) for n in range(8)
    ]
    try:
        await_that(
            lambda: marks.exists() and len(marks.read_text().splitlines()) == 8, 50, "all hang"
        )
        run(net, "--network", "a", "one")
        assert all(process.poll() is None for process in hanging)
    finally:
        go.touch()
        for process in hanging:
            process.wait(60)


def test_status_that_hangs_does_not_keep_a_list_waiting(net: NetworkedLighterd) -> None:
    net.plugin("slow", '#!/bin/sh\ntest "$CNI_COMMAND" != STATUS || exec sleep 600\n')
    net.write("20-slow.conf", {"cniVersion": "1.1.0", "name": "slow", "type": "slow"})
    listed = net.ctl("network", "ls")
    assert "did not tell in 2 s" in listed.stderr.decode()
    assert b"a*" in listed.stdout.split()


def test_an_odd_configuration_takes_away_no_other(net: NetworkedLighterd) -> None:
    odd = {"type": "bridge", "ipam": {"type": "host-local", "ranges": 5}}
    net.write("20-odd.conf", {"cniVersion": "1.0.0", "name": "odd", **odd})
    listed = net.ctl("network", "ls")
    assert "ipam.ranges is no list" in listed.stderr.decode()
    assert b"a*" in listed.stdout.split()
    net.ctl("network", "create", "more", check=True)
    net.ctl("network", "rm", "more", check=True)


def test_connected_again_it_has_its_ports_again(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    net.ctl("network", "disconnect", "a", "one", check=True)
    assert "--dport 8080" not in net.host("iptables", "-t", "nat", "-S")
    net.ctl("network", "connect", "a", "one", check=True)
    assert "--dport 8080" in net.host("iptables", "-t", "nat", "-S")
    net.ctl("stop", "-t", "0", "one", check=True)
    net.ctl("start", "one", check=True)
    assert "--dport 8080" in net.host("iptables", "-t", "nat", "-S")


def test_all_namespaces_are_looked_at_unless_one_is_named(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "one")
    other = ("-n", "other")
    net.ctl(*other, "images", "import", str(images.busybox_archive()), check=True)
    net.ctl(*other, "run", "-d", "--network", "a", IMAGE, "two", "sleep", "600", check=True)
    try:
        assert {row[1] for row in checked(net, "network", "check")} == {"one", "two"}
        assert {row[1] for row in checked(net, *other, "network", "check")} == {"two"}
        assert checked(net, "network", "reload", "--force") == [
            ["default", "one", "a", "eth0", "repaired"],
            ["other", "two", "a", "eth0", "repaired"],
        ]
    finally:
        net.ctl(*other, "rm", "-f", "two", check=True)


def checked(net: NetworkedLighterd, *words: str) -> list[list[str]]:
    lines = net.ctl(*words, check=True).stdout.decode().splitlines()
    return [line.split()[:5] for line in lines[1:]]


def test_ports_of_a_network_that_is_left_are_free(net: NetworkedLighterd) -> None:
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "--network", "a", "-p", "8080:80", "one")
    net.ctl("network", "disconnect", "a", "one", check=True)
    assert net.ctl("port", "one", check=True).stdout == b""
    run(net, "-p", "8080:80", "two")
    refused = net.ctl("network", "connect", "b", "one")
    assert b"container two has it" in refused.stderr
    assert not net.addresses_of("one")
    net.ctl("rm", "-f", "two", check=True)
    net.restart()
    net.ctl("network", "connect", "b", "one", check=True)
    assert net.ctl("port", "one", check=True).stdout == b"80/tcp -> 0.0.0.0:8080\n"


@pytest.mark.parametrize("point", ["network.adding", "network.plugin-added:abort:2"])
def test_ports_of_a_connect_that_a_kill_cut_short_are_free(
    net: NetworkedLighterd, point: str
) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    net.ctl("network", "disconnect", "a", "one", check=True)
    net.restart(FAULT=point if ":" in point else f"{point}:abort")
    argv = net.ctl_argv("--connect-timeout", "1s", "network", "connect", "a", "one")
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL):
        await_death(net)
    assert record_of(net)[1]["ports"], "it was killed when the ports were its again"
    net.start()
    await_that(lambda: not record_of(net)[1]["ports"], 20, "nobody has the ports")
    run(net, "--network", "a", "-p", "8080:80", "two")
    net.ctl("rm", "-f", "two", check=True)
    net.ctl("network", "connect", "a", "one", check=True)
    assert net.ctl("port", "one", check=True).stdout == b"80/tcp -> 0.0.0.0:8080\n"


def test_a_network_is_left_by_whatever_word_it_was_asked_for(net: NetworkedLighterd) -> None:
    for number, (flags, word) in enumerate(
        (
            (("--cni",), "a"),
            (("-p", "8080:80"), "a"),
            (("-p", "8080:80"), "default"),
            (("--network", "a"), "default"),
        )
    ):
        name = f"c{number}"
        run(net, *flags, name)
        again = net.ctl("network", "connect", "a", name)
        assert b"already" in again.stderr, flags
        net.ctl("network", "disconnect", word, name, check=True)
        assert "eth0" not in inside(net, name, "ip -o link"), flags
        assert net.ctl("network", "disconnect", word, name).returncode == 1, flags
        net.ctl("restart", "-t", "0", name, check=True)
        assert not net.addresses_of(name), flags


def test_an_address_is_not_asked_of_another_network(net: NetworkedLighterd) -> None:
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "--network", "a", "--network", "b", "--ip", "10.20.0.9", "one")
    net.ctl("network", "disconnect", "a", "one", check=True)
    net.ctl("restart", "-t", "0", "one", check=True)
    assert [one["network"] for one in net.task("one")["networks"]] == ["b"]


def test_who_has_no_network_of_its_own_is_not_connected_stopped_either(
    net: NetworkedLighterd,
) -> None:
    joined = f"/run/netns/{net.netns}"
    for name, flags, cause in (
        ("host", ("--net-host",), "the host's network"),
        ("joined", ("--with-ns", f"net:{joined}"), joined),
    ):
        net.ctl("create", *flags, "--name", name, IMAGE, "sleep", "600", check=True)
        refused = net.ctl("network", "connect", "a", name)
        assert refused.returncode == 1 and cause in refused.stderr.decode()
        net.ctl("start", name, check=True)
        assert not net.addresses_of(name)


def test_f56_an_address_is_free_when_nobody_has_it_any_more(net: NetworkedLighterd) -> None:
    """Also where somebody has taken the namespace off its path."""
    run(net, "--network", "a", "one")
    (address,) = net.addresses_of("one")
    (path,) = (net.state / "netns").glob("*")
    subprocess.run(["umount", "-l", str(path)], check=True)
    net.ctl("network", "disconnect", "a", "one", check=True)
    assert not has_network(net, "one", address)
    assert not list(net.addresses.glob(f"*/{address}"))


def test_a_namespace_taken_off_its_path_is_kept_again(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "one")
    (address,) = net.addresses_of("one")
    (path,) = (net.state / "netns").glob("*")
    subprocess.run(["umount", "-l", str(path)], check=True)
    assert net.ctl("network", "check", "one").returncode == 1
    assert b"repaired" in net.ctl("network", "reload", "one", check=True).stdout
    assert net.ctl("network", "check", "one").returncode == 0
    subprocess.run(["umount", "-l", str(path)], check=True)
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    net.ctl("network", "connect", "b", "one", check=True)
    assert "10.21.0." in inside(net, "one", "ip -o addr show eth1")
    assert has_network(net, "one", address)


def test_two_connects_at_once_of_a_container_without_a_network(net: NetworkedLighterd) -> None:
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "bare")

    def connect(network: str) -> None:
        with net.client() as client:
            client.call("networks", "connect", id="bare", name=network)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(connect, ("a", "b")))
    assert len(net.addresses_of("bare")) == 2
    assert set(defined(net, "bare")["network"]["networks"]) == {"a", "b"}


def test_a_second_start_that_fails_leaves_what_removes_itself_to_the_first(
    net: NetworkedLighterd,
) -> None:
    go, marks = net.bin_dir / "go", net.bin_dir / "marks"
    net.plugin(
        "slow",
        f"#!/bin/bash\n[[ $CNI_COMMAND == ADD ]] || exit 0\ntouch {marks}\n"
        f"while [[ ! -e {go} ]]; do sleep 0.1; done\n"
        """echo '{"cniVersion": "1.0.0"}'\n""",
    )
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    net.write(
        "20-slow.conflist",
        {"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}, portmap]},
    )
    flags = ("--rm", "--network", "slow", "-p", "18080:80", "-v", "/data", "--name", "one")
    net.ctl("create", *flags, IMAGE, "sh", "-c", "echo runs; sleep 600", check=True)
    with subprocess.Popen(net.ctl_argv("start", "-a", "one"), stdout=subprocess.PIPE) as first:
        try:
            await_that(marks.exists, 30, "the plugin runs")
            assert b"one" in net.ctl("start", "-a", "one").stderr
            go.touch()
            assert first.stdout is not None
            assert first.stdout.readline() == b"runs\n"
            net.ctl("rm", "-f", "one", check=True)
        finally:
            go.touch()
            first.kill()


def defined(net: NetworkedLighterd, container_id: str) -> dict[str, Any]:
    found: dict[str, Any] = lives.ask(net, "containers.get", id=container_id)["container"]
    return dict(found["options"])


def test_what_is_changed_while_a_network_is_connected_stays_changed(net: NetworkedLighterd) -> None:
    go, marks = net.bin_dir / "go", net.bin_dir / "marks"
    net.plugin(
        "slow",
        f"#!/bin/bash\n[[ $CNI_COMMAND == ADD ]] || exit 0\ntouch {marks}\n"
        f"while [[ ! -e {go} ]]; do sleep 0.1; done\n"
        """echo '{"cniVersion": "1.0.0"}'\n""",
    )
    net.write("20-slow.conf", {"cniVersion": "1.0.0", "name": "slow", "type": "slow"})
    run(net, "one")
    with subprocess.Popen(net.ctl_argv("network", "connect", "slow", "one")) as connecting:
        await_that(marks.exists, 30, "the plugin runs")
        net.ctl("update", "--restart", "on-failure:3", "one", check=True)
        go.touch()
        assert connecting.wait(60) == 0
    assert defined(net, "one")["restart"]["max_retries"] == 3
    assert defined(net, "one")["network"]["networks"] == ["slow"]


def test_killed_when_it_is_connected_and_nothing_is_written(net: NetworkedLighterd) -> None:
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "--network", "a", "one")
    (first,) = net.addresses_of("one")
    net.restart(FAULT="network.connected:abort")
    argv = net.ctl_argv("--connect-timeout", "1s", "network", "connect", "b", "one")
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL):
        await_death(net)
    net.start()
    assert has_network(net, "one", first)
    assert defined(net, "one")["network"]["networks"] == ["a"]
    net.ctl("network", "connect", "b", "one", check=True)  # completes it
    assert defined(net, "one")["network"]["networks"] == ["a", "b"]
    assert b"already" in net.ctl("network", "connect", "b", "one").stderr
    (second,) = [address for address in net.addresses_of("one") if address != first]
    assert second in inside(net, "one", "ip -o addr show eth1")
    assert net.ctl("network", "check", "one").returncode == 0
    net.ctl("network", "disconnect", "b", "one", check=True)
    assert net.addresses_of("one") == [first]
    assert defined(net, "one")["network"]["networks"] == ["a"]


def test_killed_while_it_is_disconnected(net: NetworkedLighterd) -> None:
    run(net, "--network", "a", "-p", "8080:80", "one")
    (address,) = net.addresses_of("one")
    net.restart(FAULT="network.disconnecting:abort")
    argv = net.ctl_argv("--connect-timeout", "1s", "network", "disconnect", "a", "one")
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL):
        await_death(net)
    net.start()
    assert net.addresses_of("one") == [address]
    assert has_network(net, "one", address)
    net.ctl("network", "disconnect", "a", "one", check=True)
    assert not net.addresses_of("one")
    assert defined(net, "one")["network"]["networks"] == []
