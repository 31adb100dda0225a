"""Debian's other plugins, for real: what each promises is there, and gone with the container.

Kinds of links that the kernel may not have (ipvlan, vlan, vrf) are asked for all the same: there
the refusal has the plugin's reason, and nothing stays.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import census
from tests.harness import await_that, settled
from tests.networks import PLUGINS, NetworkedLighterd, inside, run

IMAGE = "docker.io/library/busybox:test"


@pytest.fixture(scope="module")
def machine() -> Iterator[NetworkedLighterd]:
    manager = NetworkedLighterd(census.Owners(), timeout_s=60).start()
    try:
        manager.import_busybox()
        manager.host("ip", "link", "set", "lo", "up")
        yield manager
    finally:
        manager.close()


@pytest.fixture
def net(machine: NetworkedLighterd) -> Iterator[NetworkedLighterd]:
    yield machine
    machine.empty()
    for name in {"lthost0", "ltparent", "ltdhcp"} & links(machine):
        machine.host("ip", "link", "del", name)


def seen_from(net: NetworkedLighterd, container_id: str, *argv: str) -> str:
    """What a program of the host finds in a container's network."""
    pid = str(net.task(container_id)["pid"])
    done = subprocess.run(
        ["nsenter", "--net", "-t", pid, "--", *argv], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def links(net: NetworkedLighterd) -> set[str]:
    lines = net.host("ip", "-o", "link").splitlines()
    return {line.split(": ")[1].partition("@")[0] for line in lines}


def static(address: str) -> dict[str, Any]:
    return {"type": "static", "addresses": [{"address": address}]}


def test_host_device_is_lent_and_comes_back(net: NetworkedLighterd) -> None:
    """With an address that no plugin chooses."""
    net.host("ip", "link", "add", "lthost0", "type", "veth", "peer", "name", "lthost1")
    net.host("ip", "address", "add", "10.41.0.1/24", "dev", "lthost0")
    net.host("ip", "link", "set", "lthost0", "up")
    device = {"type": "host-device", "device": "lthost1", "ipam": static("10.41.0.2/24")}
    net.write("10-lent.conf", {"cniVersion": "1.0.0", "name": "lent", **device})
    run(net, "--network", "lent", "one")
    assert net.addresses_of("one") == ["10.41.0.2"]
    assert "lthost1" not in links(net)
    assert "1 packets received" in inside(net, "one", "ping -c 1 -W 10 10.41.0.1")
    second = net.ctl("run", "--network", "lent", IMAGE, "two", "true")
    assert second.returncode == 125 and b"failed to find host device" in second.stderr
    # Its DEL fails too, for as long as there is a namespace to look into.
    await_that(lambda: len(list((net.root / "network").iterdir())) == 1, 60, "it is given up")
    assert "1 packets received" in inside(net, "one", "ping -c 1 -W 10 10.41.0.1")
    net.ctl("rm", "-f", "one", check=True)
    assert "lthost1" in links(net)
    net.host("ip", "link", "del", "lthost0")


def test_host_device_comes_back_after_a_lost_shim(net: NetworkedLighterd) -> None:
    net.host("ip", "link", "add", "lthost0", "type", "veth", "peer", "name", "lthost1")
    device = {"type": "host-device", "device": "lthost1"}
    net.write("10-lent.conf", {"cniVersion": "1.0.0", "name": "lent", **device})
    run(net, "--network", "lent", "--restart", "no", "one")
    net.kill9()
    subprocess.run(["kill", "-KILL", str(net.shims()[0])], check=True)
    net.start()
    await_that(lambda: net.task("one")["status"] == "stopped", 60, "its end is told")
    net.ctl("rm", "one", check=True)
    await_that(lambda: "lthost1" in links(net), 60, "the device is back")
    net.host("ip", "link", "del", "lthost0")


def test_tuning_and_source_based_routing(net: NetworkedLighterd) -> None:
    first, second = net.bridge("one", "10.42.0.0/24"), net.bridge("two", "10.43.0.0/24")
    mac = "c2:b0:57:49:47:f1"
    first["plugins"].append(
        {
            "type": "tuning",
            "sysctl": {"net.core.somaxconn": "500"},
            "mac": mac,
            "mtu": 1400,
            "dataDir": str(net.addresses / "tuning"),
        }
    )
    second["plugins"].append({"type": "sbr"})
    net.write("10-one.conflist", first)
    net.write("20-two.conflist", second)
    run(net, "--network", "one", "--network", "two", "both")
    assert inside(net, "both", "cat /proc/sys/net/core/somaxconn") == "500\n"
    link = seen_from(net, "both", "ip", "-o", "link", "show", "eth0")
    assert "mtu 1400" in link and mac in link
    (address,) = [one for one in net.addresses_of("both") if one.startswith("10.43.")]
    rules = [line for line in seen_from(net, "both", "ip", "rule").splitlines() if address in line]
    (table,) = [rule.rpartition("lookup ")[2].strip() for rule in rules]
    route = seen_from(net, "both", "ip", "route", "show", "table", table)
    assert "default via 10.43.0.1" in route
    checked = net.ctl("network", "check", "both")
    assert checked.returncode == 0, checked.stdout.decode()
    net.ctl("rm", "-f", "both", check=True)
    assert not list(net.addresses.glob("tuning/*"))


def test_a_firewall_between_bridges(net: NetworkedLighterd) -> None:
    """`ingressPolicy: same-bridge` by iptables: networks that have it do not reach each other."""
    closed = {"ingressPolicy": "same-bridge"}
    policies = {"closed": closed, "open": {}, "other": closed}
    for number, (name, policy) in enumerate(policies.items()):
        document = net.bridge(name, f"10.{44 + number}.0.0/24")
        document["plugins"][-1] |= {"backend": "iptables", **policy}
        net.write(f"{number}-{name}.conflist", document)
    net.host("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    for name, network in (("in", "closed"), ("beside", "closed"), ("out", "open")):
        run(net, "--network", network, name)
    run(net, "--network", "other", "stranger")

    def reaches(one: str, other: str) -> bool:
        (address,) = net.addresses_of(other)
        said = net.ctl("exec", one, "ping", "-c", "1", "-W", "3", address)
        return said.returncode == 0

    await_that(lambda: reaches("beside", "in"), 30, "on the same bridge")
    await_that(lambda: reaches("stranger", "out"), 30, "from one to the other")
    assert not reaches("stranger", "in")


@pytest.fixture
def dhcp(net: NetworkedLighterd, tmp_path: Path) -> Iterator[str]:
    """A server on the bridge ltdhcp, and the plugin's daemon; yields the daemon's socket."""
    net.host("ip", "link", "add", "ltdhcp", "type", "bridge")
    net.host("ip", "address", "add", "10.47.0.1/24", "dev", "ltdhcp")
    net.host("ip", "link", "set", "ltdhcp", "up")
    leases, config, daemon = tmp_path / "leases", tmp_path / "udhcpd.conf", tmp_path / "dhcp.sock"
    leases.touch()
    config.write_text(
        "start 10.47.0.50\nend 10.47.0.60\ninterface ltdhcp\nauto_time 0\n"
        f"lease_file {leases}\npidfile {tmp_path}/pid\n"
        "option subnet 255.255.255.0\noption router 10.47.0.1\noption lease 600\n"
    )
    entered = ["nsenter", f"--net=/run/netns/{net.netns}", "--"]
    busybox = ["busybox", "udhcpd", "-f", str(config)]
    argv = [f"{PLUGINS}/dhcp", "daemon", "-socketpath", str(daemon)]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log").open("w"))
        for words in (busybox, argv):
            process = subprocess.Popen([*entered, *words], stdout=log, stderr=log)
            stack.enter_context(process)
            stack.callback(process.terminate)
        await_that(daemon.exists, 30, "the plugin's daemon listens")
        yield str(daemon)


def test_addresses_by_dhcp(net: NetworkedLighterd, dhcp: str, tmp_path: Path) -> None:
    """They are leased, kept while the manager is away, and given back at the end."""
    ipam = {"type": "dhcp", "daemonSocketPath": dhcp}
    bridge = {"type": "bridge", "bridge": "ltdhcp", "ipam": ipam}
    net.write("10-leased.conflist", {"cniVersion": "1.0.0", "name": "leased", "plugins": [bridge]})
    run(net, "--network", "leased", "one")
    run(net, "--network", "leased", "two")
    addresses = [net.addresses_of(name)[0] for name in ("one", "two")]
    assert len({*addresses}) == 2
    assert all(50 <= int(address.rpartition(".")[2]) <= 60 for address in addresses)
    assert "default via 10.47.0.1" in seen_from(net, "one", "ip", "route")
    assert "1 packets received" in inside(net, "one", f"ping -c 1 -W 10 {addresses[1]}")
    net.restart()
    assert net.addresses_of("one") == addresses[:1]
    net.ctl("rm", "-f", "one", "two", check=True)


def _kernel_has(net: NetworkedLighterd, kind: str, *words: str) -> bool:
    more = {"vlan": ("id", "9"), "vrf": ("table", "9")}.get(kind, ())
    argv = ["ip", "-n", net.netns, "link", "add", *words, "name", "ltprobe", "type", kind, *more]
    made = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    if made.returncode == 0:
        net.host("ip", "link", "del", "ltprobe")
    return made.returncode == 0


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_ipvlan_or_why_not(net: NetworkedLighterd, mode: str) -> None:
    net.host("ip", "link", "add", "ltparent", "type", "veth", "peer", "name", "ltother")
    for name in ("ltparent", "ltother"):
        net.host("ip", "link", "set", name, "up")
    plugin = {"type": "ipvlan", "master": "ltparent", "mode": mode}
    plugin["ipam"] = net.ipam("10.48.0.0/24")
    net.write("10-ipv.conf", {"cniVersion": "1.0.0", "name": "ipv", **plugin})
    if _kernel_has(net, "ipvlan", "link", "ltparent"):
        run(net, "--network", "ipv", "one")
        run(net, "--network", "ipv", "two")
        (address,) = net.addresses_of("two")
        assert "1 packets received" in inside(net, "one", f"ping -c 1 -W 10 {address}")
        net.ctl("rm", "-f", "one", "two", check=True)
    else:
        said = net.ctl("run", "--network", "ipv", IMAGE, "one", "true")
        assert said.returncode == 125 and b"ipvlan" in said.stderr, said.stderr
        assert said.stderr.count(b"\n") == 1
    settled(net.left_of_networks)
    net.host("ip", "link", "del", "ltparent")


def test_vlan_and_vrf_or_why_not(net: NetworkedLighterd) -> None:
    net.host("ip", "link", "add", "ltparent", "type", "bridge")
    net.host("ip", "link", "set", "ltparent", "up")
    vlan = {"type": "vlan", "master": "ltparent", "vlanId": 7, "ipam": net.ipam("10.49.0.0/24")}
    net.write("10-vlan.conf", {"cniVersion": "1.0.0", "name": "tagged", **vlan})
    own = net.bridge("own", "10.50.0.0/24")
    own["plugins"].append({"type": "vrf", "vrfname": "blue"})
    net.write("20-own.conflist", own)
    for network, kind, words in (("tagged", "vlan", ("link", "ltparent")), ("own", "vrf", ())):
        if _kernel_has(net, kind, *words):
            run(net, "--network", network, "one")
            shown = seen_from(net, "one", "ip", "-d", "-o", "link")
            assert {"vlan": "vlan protocol 802.1Q id 7", "vrf": "blue"}[kind] in shown
            net.ctl("rm", "-f", "one", check=True)
        else:
            said = net.ctl("run", "--network", network, IMAGE, "one", "true")
            assert said.returncode == 125 and said.stderr.count(b"\n") == 1, said.stderr
            assert kind.encode() in said.stderr.lower(), said.stderr
        settled(net.left_of_networks)
