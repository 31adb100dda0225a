"""What people write after -p and --network, and what becomes of it."""

import socket
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.ctl.flags import network as flags
from lighter.ctl.grammar import UsageError
from lighter.daemon.network.ports import choose
from lighter.daemon.network.request import NetworkRequest, Port, PortTable, from_option, parse
from lighter.proto.errors import AlreadyExists, InvalidArgument

NOTHING = {
    "hostname": None,
    "net_host": False,
    "cni": False,
    "network": (),
    "publish": (),
    "ip": None,
    "ip6": None,
    "mac_address": None,
    "dns": (),
    "dns_search": (),
    "dns_option": (),
    "add_host": (),
}


def fields(**values: Any) -> dict[str, Any]:
    return flags.fields({**NOTHING, **values})


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("80", [("", 0, 80, "tcp")]),
        ("8080:80", [("", 8080, 80, "tcp")]),
        ("127.0.0.1:8080:80/udp", [("127.0.0.1", 8080, 80, "udp")]),
        ("127.0.0.1::80", [("127.0.0.1", 0, 80, "tcp")]),
        ("[::1]:8080:80", [("::1", 8080, 80, "tcp")]),
        ("8000-8001:80-81/sctp", [("", 8000, 80, "sctp"), ("", 8001, 81, "sctp")]),
    ],
)
def test_published_ports(text: str, published: list[tuple[str, int, int, str]]) -> None:
    assert [tuple(port.values()) for port in flags.ports(text)] == published


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "80:",
        "1:2:3:4",
        "8000-8002:80-81",
        "90-80",
        "0",
        "65536",
        "80/",
        "[::1:80:80",
        "-1",
    ],
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        list(flags.ports(text))


@given(st.text(max_size=30))
def test_no_word_after_p_breaks_the_reader(text: str) -> None:
    try:
        for port in flags.ports(text):
            assert 1 <= port["container_port"] <= 65535
            assert 0 <= port["host_port"] <= 65535
    except UsageError:
        pass


def test_words_for_networks() -> None:
    assert fields() == {"hostname": "", "net_host": False}
    assert fields(network=("host",)) == {"hostname": "", "net_host": True}
    assert fields(network=("none",)) == {"hostname": "", "net_host": False}
    assert fields(network=("container:web",))["network"]["container"] == "web"
    assert fields(network=("a", "b"))["network"]["networks"] == ["a", "b"]
    assert fields(add_host=("db:fd00::1", "x=[::1]"))["network"]["add_hosts"] == [
        ["db", "fd00::1"],
        ["x", "::1"],
    ]
    for refused in (
        {"network": ("host", "a")},
        {"network": ("none",), "cni": True},
        {"network": ("host",), "publish": ("80",)},
        {"net_host": True, "publish": ("80",)},
        {"add_host": ("db",)},
    ):
        with pytest.raises(UsageError):
            fields(**refused)


def test_a_request_is_the_same_after_it_was_recorded() -> None:
    request = parse(
        fields(
            network=("a",),
            publish=("8080:80",),
            dns=("10.0.0.1",),
            add_host=("db:10.0.0.2",),
            ip="10.0.0.3",
            mac_address="02-00-00-00-00-0A",
        )["network"]
    )
    assert from_option(request.as_option()) == request
    assert request.mac == "02:00:00:00:00:0a"
    assert from_option(None) == NetworkRequest()
    assert parse({"ports": [{"container_port": 80}]}).networks == ("default",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"networks": ["a", "a"]},
        {"networks": [""]},
        {"networks": "a"},
        {"ports": [{"container_port": 0}]},
        {"ports": [{"container_port": 80, "protocol": "icmp"}]},
        {"ports": [{"container_port": 80, "host_ip": "here"}]},
        {"ports": [{"container_port": 80, "host_port": 1}, {"container_port": 81, "host_port": 1}]},
        {"ip": "10.0.0.1"},
        {"networks": ["a"], "ip": "fd00::1"},
        {"networks": ["a"], "ip6": "10.0.0.1"},
        {"networks": ["a"], "mac": "01:00:00:00:00:00"},
        {"networks": ["a"], "mac": "02:00"},
        {"dns": ["resolver.example"]},
        {"dns_search": ["a\nnameserver 6.6.6.6"]},
        {"add_hosts": [["a b", "10.0.0.1"]]},
        {"add_hosts": [["a", "10.0.0.1\n10.0.0.2 b"]]},
        {"container": "web", "networks": ["a"]},
        {"container": "web", "dns": ["10.0.0.1"]},
    ],
)
def test_requests_that_are_refused(wrong: dict[str, Any]) -> None:
    """Line breaks in names too (SEC-40)."""
    with pytest.raises(InvalidArgument):
        parse(wrong)


def test_a_port_that_stands_twice_is_found_among_thousands() -> None:
    """By its number, not by a look at each pair: the manager answers nobody meanwhile."""
    compared = 0

    class Counted(Port):
        def clashes(self, other: Port) -> bool:
            nonlocal compared
            compared += 1
            return super().clashes(other)

    table = PortTable()
    for number in range(1, 4000):
        port = Counted(number, number, "tcp", "127.0.0.1")
        assert table.find(port) is None
        table.add(str(number), port)
    assert compared == 0
    everywhere = Counted(80, 2000)
    found = table.find(everywhere)
    assert found is not None and found[0] == "2000"
    assert (compared, table.find(Counted(80, 2000, "udp"))) == (1, None)


def test_ports_of_containers_clash_by_address() -> None:
    everywhere, here, there = Port(80, 8080), Port(80, 8080, "tcp", "127.0.0.1"), Port(80, 8080)
    assert everywhere.clashes(here)
    assert here.clashes(everywhere)
    assert not here.clashes(Port(80, 8080, "tcp", "127.0.0.2"))
    assert not everywhere.clashes(Port(80, 8080, "udp"))
    assert there.clashes(everywhere)
    four, six = Port(80, 8080, "tcp", "0.0.0.0"), Port(80, 8080, "tcp", "::")
    assert not four.clashes(six) and not six.clashes(here)
    assert four.clashes(here) and six.clashes(Port(80, 8080, "tcp", "::1"))
    assert everywhere.clashes(six) and six.clashes(everywhere)
    with pytest.raises(AlreadyExists, match="container web has it"):
        choose([here], [("web", everywhere)], ipv6=False)
    chosen = choose([Port(80, 0, "tcp", "127.0.0.1"), Port(81, 0, "udp", "::1")], [], ipv6=True)
    assert all(port.host_port for port in chosen)
    for number in (0, 8080):
        with pytest.raises(InvalidArgument, match="the host has no such address"):
            choose([Port(80, number, "tcp", "203.0.113.7")], [], ipv6=True)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_program_of_the_host_keeps_its_port_of_ipv6(kind: str) -> None:
    how = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6, how) as program:
        program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        program.bind(("::", 0))
        if kind == "tcp":
            program.listen()
        taken = Port(80, program.getsockname()[1], kind)
        with pytest.raises(AlreadyExists, match=r"\[::\]:\d+/\w+: a process of the host has it"):
            choose([taken], [], ipv6=True)
        four = replace(taken, host_ip="0.0.0.0")
        assert choose([four], [], ipv6=True) == (four,)
        assert choose([taken], [], ipv6=False) == (taken,)
    with socket.socket(socket.AF_INET, how) as program:
        program.bind(("", 0))
        if kind == "tcp":
            program.listen()
        six = Port(80, program.getsockname()[1], kind, "::")
        assert choose([six], [], ipv6=True) == (six,), "the other family's is another's"
