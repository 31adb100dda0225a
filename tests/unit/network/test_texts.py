"""Results of every version, hosts and resolv.conf, specs, and configurations that are made."""

import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.network import hostfiles, made
from lighter.daemon.network.configs import from_json
from lighter.daemon.network.hostfiles import Resolver
from lighter.daemon.network.made import NewNetwork, bridge_name
from lighter.daemon.network.request import NetworkRequest
from lighter.daemon.network.result import Address, Result, read
from lighter.daemon.network.specs import Prepared, default_hostname, with_network
from lighter.proto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

RESULT = Result((Address("10.0.0.2/24", "10.0.0.1"), Address("fd00::2/64")), domain="lan")


@pytest.mark.parametrize(
    "document",
    [
        {"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}, "ip6": {"ip": "fd00::2/64"}},
        {
            "interfaces": [{"name": "lt0"}, {"name": "eth0", "mac": "02::", "sandbox": "/x"}],
            "ips": [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1},
                {"version": "6", "address": "fd00::2/64"},
            ],
        },
    ],
)
def test_addresses_of_a_result(document: dict[str, Any]) -> None:
    assert read(document, "a").addresses == RESULT.addresses


@pytest.mark.parametrize(
    "document",
    [
        {"ips": [{"address": "here"}]},
        {"ips": [{}]},
        {"ips": ["10.0.0.1"]},
        {"ips": 7},
        {"dns": {"nameservers": ["not an address"]}},
        {"dns": ["10.0.0.1"]},
        {"interfaces": [7], "ips": [{"address": "10.0.0.1/8", "interface": 0}]},
    ],
)
def test_results_that_are_none(document: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition, match="a result that is none"):
        read(document, "a")


def test_hosts() -> None:
    request = NetworkRequest(add_hosts=(("db", "10.9.9.9"), ("host", "host-gateway")))
    text = hostfiles.hosts_text(request, [RESULT], "web")
    assert text.endswith("10.0.0.2\tweb\nfd00::2\tweb\n10.9.9.9\tdb\n10.0.0.1\thost\n")
    assert "127.0.0.1\thost\n" in hostfiles.hosts_text(request, [], "")
    with pytest.raises(FailedPrecondition):
        hostfiles.hosts_text(request, [Result((Address("10.0.0.2/24"),))], "web")


OWN, NEW = b"127.0.0.1 localhost\n10.0.0.2 web\n", b"127.0.0.1 localhost\n10.1.0.2 web\n"


@pytest.mark.parametrize(
    ("old", "own", "new"),
    [
        (b"", None, NEW),
        (OWN, OWN, NEW),
        (
            b"1.1.1.1 first\n" + OWN + b"2.2.2.2 last",
            OWN,
            b"1.1.1.1 first\n" + NEW + b"2.2.2.2 last",
        ),
        # Our lines are no longer as they were: what is left of them goes.
        (b"10.0.0.2 web\n2.2.2.2 last\n", OWN, NEW + b"2.2.2.2 last\n"),
        # Of the release before, which left no word of what was its own.
        (OWN + b"2.2.2.2 last\n", None, NEW + b"10.0.0.2 web\n2.2.2.2 last\n"),
    ],
)
def test_hosts_keep_what_the_container_wrote(old: bytes, own: bytes | None, new: bytes) -> None:
    assert hostfiles.hosts_changed(old, own, NEW) == new
    assert hostfiles.hosts_changed(new, NEW, NEW) == new


def test_a_container_keeps_its_own_resolv_conf(tmp_path: Path) -> None:
    def written(**request: Any) -> str:
        hostfiles.write(str(tmp_path), NetworkRequest(**request), [RESULT], "web")
        return (tmp_path / "resolv.conf").read_text()

    assert written(dns=("10.0.0.1",)).startswith("nameserver 10.0.0.1\n")
    assert written(dns=("10.0.0.2",)).startswith("nameserver 10.0.0.2\n")
    (tmp_path / "resolv.conf").write_text("nameserver 10.9.9.9\n")
    (tmp_path / "hostname").write_text("mine\n")
    assert written(dns=("10.0.0.3",)) == "nameserver 10.9.9.9\n"
    assert (tmp_path / "hostname").read_text() == "mine\n"


@pytest.mark.root
@pytest.mark.skipif(
    os.path.exists("/sys/fs/selinux/enforce"), reason="SELinux knows no label that is made up"
)
def test_the_files_have_the_label_that_is_asked_for(tmp_path: Path) -> None:
    made = hostfiles.write(str(tmp_path), NetworkRequest(), [RESULT], "web", label="u:r:t:s0")
    assert len(made) == 3
    for _, path in made:
        assert os.getxattr(path, "security.selinux") == b"u:r:t:s0"


def test_resolv_conf_is_the_callers_the_networks_or_the_hosts(tmp_path: Path) -> None:
    host = Resolver(("10.1.1.1",), ("host.example",), ("rotate",))
    assert hostfiles.resolver_of(NetworkRequest(), [RESULT], host) == Resolver(
        ("10.1.1.1",), ("lan",), ("rotate",)
    )
    asked = NetworkRequest(dns=("10.2.2.2",), dns_search=(".",), dns_options=("ndots:1",))
    assert hostfiles.resolver_of(asked, [RESULT], host).text() == (
        "nameserver 10.2.2.2\noptions ndots:1\n"
    )
    first, second = tmp_path / "resolv.conf", tmp_path / "behind"
    first.write_text("# a comment\nnameserver 127.0.0.53\nsearch lan\noptions edns0\n")
    assert hostfiles.host_resolver((str(first), str(second))) == Resolver((), ("lan",), ("edns0",))
    second.write_text("nameserver 10.3.3.3\n")
    assert hostfiles.host_resolver((str(first), str(second))).nameservers == ("10.3.3.3",)


def test_sec_48_a_spec_gets_its_network_and_keeps_the_callers_mounts() -> None:
    own = {"destination": "/etc/hosts", "source": "/mine", "type": "bind", "options": ["rbind"]}
    hosts = {**own, "destination": "/etc/resolv.conf", "source": "/etc/resolv.conf"}
    spec = {
        "mounts": [own, hosts],
        "linux": {"namespaces": [{"type": "uts"}, {"type": "network"}]},
    }
    files = (("/etc/hosts", "/r/hosts"), ("/etc/resolv.conf", "/r/resolv.conf"))
    prepared = Prepared("k", "/s/netns/k", files, "web")
    changed = json.loads(with_network(json.dumps(spec).encode(), prepared))
    assert {"type": "network", "path": "/s/netns/k"} in changed["linux"]["namespaces"]
    assert [mount["source"] for mount in changed["mounts"]] == ["/mine", "/r/resolv.conf"]
    assert changed["hostname"] == "web"
    assert default_hostname("a_b." + "x" * 80) == ("a-b." + "x" * 80)[:63]


def test_a_made_configuration_is_one() -> None:
    taken = [ipaddress.ip_network("10.77.0.0/24"), ipaddress.ip_network("10.77.1.0/25")]
    document = made.configuration(NewNetwork("web", ipv6=True), "10.77.0.0/16", taken, "/a")
    network = from_json(document, "x")
    ranges = document["plugins"][0]["ipam"]["ranges"]
    assert ranges[0] == [{"subnet": "10.77.2.0/24"}]
    assert ipaddress.ip_network(ranges[1][0]["subnet"]).is_private
    assert network.types == ("bridge", "portmap", "firewall")
    narrow = NewNetwork(
        "n", subnets=("10.1.0.0/16",), ip_range="10.1.5.0/24", gateways=("10.1.0.9",)
    )
    one = made.configuration(narrow, "10.77.0.0/16", [], "/a")["plugins"][0]["ipam"]["ranges"][0][0]
    assert one == {
        "subnet": "10.1.0.0/16",
        "gateway": "10.1.0.9",
        "rangeStart": "10.1.5.0",
        "rangeEnd": "10.1.5.255",
    }
    for within, first, last in (
        ("10.1.0.0/24", "10.1.0.1", "10.1.0.255"),
        ("10.1.255.128/25", "10.1.255.128", "10.1.255.254"),
    ):
        edge = NewNetwork("n", subnets=("10.1.0.0/16",), ip_range=within)
        plugin = made.configuration(edge, "10.77.0.0/16", [], "/a")["plugins"][0]
        one = plugin["ipam"]["ranges"][0][0]
        assert (one["rangeStart"], one["rangeEnd"]) == (first, last), "no address of all"
    assert len(bridge_name("a-very-long-name-of-a-network")) <= 15
    assert bridge_name("web") == "lt-web"
    assert len(bridge_name("a-very-long-name-of-a-network", internal=True)) <= 15


def test_made_networks_of_a_bridge_are_kept_apart() -> None:
    """The bridge's name tells the manager's own rules which networks are internal."""
    for internal, bridge in ((False, "lt-web"), (True, "lti-web")):
        new = NewNetwork("web", internal=internal)
        main, *_, firewall = made.configuration(new, "10.77.0.0/16", [], "/a")["plugins"]
        assert main["bridge"] == bridge
        assert firewall == {"type": "firewall", "ingressPolicy": "same-bridge"}
    ptp = made.configuration(NewNetwork("web", driver="ptp"), "10.77.0.0/16", [], "/a")
    assert ptp["plugins"][-1] == {"type": "firewall"}


def test_an_earlier_releases_network_is_open() -> None:
    """An internal one stays so with the word in its file: its bridge bears no internal name."""

    def is_open(internal: bool, *, has_word: bool, file: str = "lighter-web", **main: str) -> bool:
        new = NewNetwork("web", internal=internal)
        document = made.configuration(new, "10.77.0.0/16", [], "/a")
        document["plugins"][0] |= main
        if not has_word:
            del document["plugins"][-1]["ingressPolicy"]
        return made.is_open(from_json(document, f"/conf/{file}.conflist"))

    for internal in (False, True):
        assert not is_open(internal, has_word=True)
        assert is_open(internal, has_word=False, bridge="lt-web")
        assert not is_open(internal, has_word=False, bridge="lt-web", file="theirs")
    assert is_open(True, has_word=True, bridge="lt-web")
    assert not is_open(False, has_word=True, bridge="br0")


@pytest.mark.parametrize(
    "new",
    [
        NewNetwork("host"),
        NewNetwork("../x"),
        NewNetwork("a", driver="overlay"),
        NewNetwork("a", driver="macvlan"),
        NewNetwork("a", parent="eth0"),
        NewNetwork("a", subnets=("10.77.0.0/16",)),
        NewNetwork("a", subnets=("10.1.0.0/24", "10.2.0.0/24")),
        NewNetwork("a", subnets=("10.1.0.1/24",)),
        NewNetwork("a", subnets=("10.1.0.0/24",), gateways=("10.2.0.1",)),
        NewNetwork("a", subnets=("10.1.0.0/24",), ip_range="10.2.0.0/24"),
        NewNetwork("a", subnets=("10.1.0.0/24",), ip_range="10.1.0.0/32"),
        NewNetwork("a", subnets=("10.1.0.0/24",), ip_range="10.1.0.255/32"),
        NewNetwork("a", mtu=20),
    ],
)
def test_networks_that_are_not_made(new: NewNetwork) -> None:
    taken = [ipaddress.ip_network("10.77.3.0/24")]
    with pytest.raises(InvalidArgument):
        made.configuration(new, "10.77.0.0/16", taken, "/a")


def test_a_pool_can_be_used_up() -> None:
    with pytest.raises(ResourceExhausted, match="--subnet"):
        made.configuration(
            NewNetwork("a"), "10.77.0.0/24", [ipaddress.ip_network("10.0.0.0/8")], "/"
        )
