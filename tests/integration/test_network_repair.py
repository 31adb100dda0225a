"""Networks of running containers, kept and mended: odd records, cut repairs, odd plugins."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import census
from tests.harness import await_that, settled
from tests.networks import NetworkedLighterd, inside, run

IMAGE = "docker.io/library/busybox:test"
MAPPED = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")


@pytest.fixture(scope="module")
def machine() -> Iterator[NetworkedLighterd]:
    manager = NetworkedLighterd(census.Owners(), timeout_s=8).start()
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
