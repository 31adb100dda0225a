"""Networks by CNI, with the real plugins: the tutorial's chapter 7 from an empty machine, and on.

One manager for all of the module, in a network namespace of its own (tests/networks.py). Each test
removes its containers; that nothing of them stays is looked at after each.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests import census, lives
from tests.harness import await_that, settled
from tests.integration.test_restarts import events
from tests.networks import NetworkedLighterd, inside, run

IMAGE = "docker.io/library/busybox:test"
SERVE = "mkdir -p /www; echo hello from $HOSTNAME > /www/index.html; exec httpd -f -p 80 -h /www"


@pytest.fixture(scope="module")
def machine() -> Iterator[NetworkedLighterd]:
    """Plugins are installed, and there is no configuration: a machine as people find it."""
    manager = NetworkedLighterd(census.Owners()).start()
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


def test_the_tutorials_chapter_from_an_empty_machine(net: NetworkedLighterd) -> None:
    nothing = net.ctl("run", "--rm", "--network", "default", IMAGE, "none", "true")
    assert nothing.returncode == 125
    assert "ctl network create default" in nothing.stderr.decode()

    net.ctl("network", "create", "default", "--subnet", "10.9.0.0/24", check=True)
    run(net, "--network", "default", "web", command=SERVE)
    (address,) = net.addresses_of("web")
    assert address.startswith("10.9.0.")
    assert address in net.ctl("ps", check=True).stdout.decode()
    info = json.loads(net.ctl("c", "info", "web", check=True).stdout)
    assert info["Networks"][0]["addresses"] == [f"{address}/24"]
    inspected = json.loads(net.ctl("inspect", "web", check=True).stdout)
    assert inspected["networks"][0]["gateways"] == ["10.9.0.1"]

    # The gateway is the host; it answers, and is answered.
    inside(net, "web", "ping -c 1 -W 3 10.9.0.1")
    await_that(lambda: net.fetch(f"http://{address}/"), 30, "httpd answers the host")
    assert net.fetch(f"http://{address}/") == "hello from web\n"

    other = net.ctl("run", "--rm", "--cni", IMAGE, "two", "wget", "-qO-", f"http://{address}/")
    assert other.stdout == b"hello from web\n", other.stderr

    used = net.ctl("network", "rm", "default")
    assert used.returncode == 1
    assert "default/web" in used.stderr.decode()
    net.ctl("rm", "-f", "web", check=True)
    net.ctl("network", "rm", "default", check=True)
    assert "lt-default" not in net.host("ip", "-br", "link")


def test_ports_are_published_found_and_freed(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    # -p alone implies the default network.
    run(
        net,
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:9000-9001:90-91/udp",
        "-p",
        "81",
        "web",
        command=SERVE,
    )
    ports = net.ctl("port", "web", check=True).stdout.decode().splitlines()
    assert "80/tcp -> 0.0.0.0:8080" in ports
    assert "91/udp -> 127.0.0.1:9001" in ports
    assert net.ctl("port", "web", "80", check=True).stdout == b"0.0.0.0:8080\n"
    chosen = net.ctl("port", "web", "81/tcp", check=True).stdout.decode().strip()
    assert int(chosen.rpartition(":")[2]) > 1023
    assert "0.0.0.0:8080->80/tcp" in net.ctl("ps", "--format", "{{.Ports}}").stdout.decode()
    await_that(lambda: net.fetch("http://10.20.0.1:8080/"), 30, "the published port answers")

    taken = net.ctl("run", "-d", "-p", "8080:80", IMAGE, "again", "true")
    assert taken.returncode == 125
    assert "container web has it" in taken.stderr.decode()
    net.ctl("rm", "-f", "web", check=True)
    assert net.fetch("http://10.20.0.1:8080/") == ""
    run(net, "-p", "8080:80", "again")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_of_a_hosts_program_is_refused(net: NetworkedLighterd, kind: str) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    how = "SOCK_STREAM" if kind == "tcp" else "SOCK_DGRAM"
    # As programs of UDP often do it, it lets others have its port too.
    program = (
        f"import socket, sys; s = socket.socket(type=socket.{how});"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('', 8085));"
        f"{'s.listen();' if kind == 'tcp' else ''} print('on', flush=True); sys.stdin.read()"
    )
    listener = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{net.netns}", "/usr/bin/python3", "-I", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert listener.stdin and listener.stdout
    with listener:
        assert listener.stdout.readline() == b"on\n"
        refused = net.ctl("run", "-d", "-p", f"8085:80/{kind}", IMAGE, "web", "true")
        listener.stdin.close()
    assert "a process of the host has it" in refused.stderr.decode()


def test_a_start_waits_for_the_hosts_address_and_does_not_count(net: NetworkedLighterd) -> None:
    """As at a boot, when the host gets its addresses after the manager has started."""
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    net.host("ip", "link", "add", "ltup", "type", "bridge")
    try:
        net.host("ip", "address", "add", "198.51.100.1/24", "dev", "ltup")
        published = ("-p", "198.51.100.1:8080:80")
        run(net, "--restart", "on-failure:2", *published, "web", command="sleep 600")
        net.host("ip", "address", "del", "198.51.100.1/24", "dev", "ltup")
        os.kill(net.task("web")["pid"], signal.SIGKILL)

        def told() -> list[str]:
            said = events(net, "/containers/restart")
            return [one["event"]["error"] for one in said if one["event"]["id"] == "web"]

        await_that(lambda: len(told()) > 4, 60, "it goes on trying")
        assert all("the host has no such address" in error for error in told()[1:])
        net.host("ip", "address", "add", "198.51.100.1/24", "dev", "ltup")

        def restarts() -> int | None:
            rows = lives.ask(net, "tasks.list", cursor="", limit=10)["tasks"]
            return next((row["restarts"] for row in rows if row["status"] == "running"), None)

        await_that(lambda: restarts() is not None, 60, "it runs")
        assert restarts() == 1
    finally:
        net.host("ip", "link", "del", "ltup")


def test_a_network_without_ports_says_so(net: NetworkedLighterd) -> None:
    document = net.bridge("plain", "10.20.0.0/24")
    del document["plugins"][1:]
    net.write("10-plain.conflist", document)
    refused = net.ctl("run", "-d", "-p", "80", "--network", "plain", IMAGE, "web", "true")
    assert "portMappings" in refused.stderr.decode()


def test_hosts_hostname_and_resolv_conf(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    flags = ("--dns", "10.1.1.1", "--dns-search", "corp.example", "--dns-option", "ndots:2")
    run(net, "--network", "a", *flags, "--add-host", "db:10.2.2.2", "--hostname", "front", "web")
    (address,) = net.addresses_of("web")
    hosts = inside(net, "web", "cat /etc/hosts")
    assert f"{address}\tfront\n" in hosts
    assert "10.2.2.2\tdb\n" in hosts
    assert "127.0.0.1\tlocalhost\n" in hosts
    assert inside(net, "web", "cat /etc/hostname; hostname") == "front\nfront\n"
    assert inside(net, "web", "cat /etc/resolv.conf") == (
        "nameserver 10.1.1.1\nsearch corp.example\noptions ndots:2\n"
    )
    gateway = ("--network", "a", "--add-host", "host.docker.internal:host-gateway", "gate")
    run(net, *gateway)
    assert "10.20.0.1\thost.docker.internal\n" in inside(net, "gate", "cat /etc/hosts")
    # The host's name stays, and its files with it, where there is no network to name.
    run(net, "--add-host", "db:10.2.2.2", "alone")
    assert "10.2.2.2\tdb\n" in inside(net, "alone", "cat /etc/hosts")
    assert net.task("alone")["networks"] == []


def test_addresses_are_given_as_asked_or_refused(net: NetworkedLighterd) -> None:
    plugin = {"capabilities": {"ips": True, "mac": True}}
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24", **plugin))
    flags = ("--network", "a", "--ip", "10.20.0.77", "--mac-address", "02:00:00:00:00:77")
    run(net, *flags, "one")
    assert net.addresses_of("one") == ["10.20.0.77"]
    assert net.task("one")["networks"][0]["mac"] == "02:00:00:00:00:77"
    refused = net.ctl("run", "-d", *flags, IMAGE, "two", "true")
    assert refused.returncode == 125
    assert "10.20.0.77" in refused.stderr.decode()
    # A plugin without capabilities is told by CNI_ARGS.
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "--network", "b", "--ip", "10.21.0.9", "--mac-address", "02:00:00:00:00:09", "three")
    assert net.addresses_of("three") == ["10.21.0.9"]


def test_ipv6_addresses_and_their_ports(net: NetworkedLighterd) -> None:
    document = net.bridge("six", "10.20.0.0/24", capabilities={"ips": True})
    document["plugins"][0]["ipam"] = net.ipam("10.20.0.0/24", "fd00:20::/64")
    net.write("10-six.conflist", document)
    run(net, "--network", "six", "--ip6", "fd00:20::20", "-p", "8080:80", "web", command=SERVE)
    four, six = net.addresses_of("web")
    assert (four.startswith("10.20.0."), six) == (True, "fd00:20::20")
    inside(net, "web", "ping -6 -c 1 -W 5 fd00:20::1")
    await_that(lambda: net.fetch("http://[fd00:20::20]/"), 30, "httpd answers by IPv6")
    await_that(lambda: net.fetch("http://[fd00:20::1]:8080/"), 30, "the port answers by IPv6")
    listed = net.ctl("ps", "--format", "{{.Ports}}", check=True).stdout.decode()
    assert listed == "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp\n"
    run(net, "--network", "six", "-p", "0.0.0.0:8081:80", "-p", "[::]:8081:80", "apart")
    ports = net.ctl("port", "apart", check=True).stdout.decode().splitlines()
    assert ports == ["80/tcp -> 0.0.0.0:8081", "80/tcp -> [::]:8081"]
    assert "fd00:20::20\tweb\n" in inside(net, "web", "cat /etc/hosts")


def test_sec_85_no_ipv6_where_none_is_configured(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    run(net, "--network", "a", "one")
    links = inside(net, "one", "cat /proc/net/if_inet6").split("\n")
    assert [line.split()[-1] for line in links if line] == ["lo"]
    # Nor in a namespace that the runtime has made.
    net.base.chmod(0o711)  # mapped ids pass through it
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
    run(net, *maps, "--network", "a", "mapped")
    run(net, "bare")
    net.ctl("network", "connect", "a", "bare", check=True)
    for name in ("mapped", "bare"):
        assert "10.20.0." in inside(net, name, "ip -o addr show eth0")
        assert "eth0" not in inside(net, name, "cat /proc/net/if_inet6"), name


def test_sec_83_a_containers_router_advertisement_changes_nothing(
    net: NetworkedLighterd,
) -> None:
    document = net.bridge("six", "10.20.0.0/24")
    document["plugins"][0]["ipam"] = net.ipam("10.20.0.0/24", "fd00:20::/64")
    net.write("10-six.conflist", document)
    run(net, "--network", "six", "rogue")
    run(net, "--network", "six", "peer")
    # ICMPv6 type 134, hop limit 64, a lifetime of 1800 s; the kernel adds the checksum. With it
    # a prefix (option 3) of which a host may make itself an address: rfc4861, 4.2 and 4.6.2.
    program = (
        "import socket, struct; s = socket.socket(10, 3, 58);"
        "s.setsockopt(41, socket.IPV6_MULTICAST_HOPS, 255);"
        "s.setsockopt(41, socket.IPV6_MULTICAST_IF, socket.if_nametoindex('eth0'));"
        "head = struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0);"
        "prefix = struct.pack('!BBBBIII', 3, 4, 64, 0xC0, 1800, 1800, 0);"
        "prefix += socket.inet_pton(10, 'fd00:bad::');"
        "s.sendto(head + prefix, ('ff02::1', 0))"
    )
    pid = str(net.task("rogue")["pid"])

    def advertise() -> bool:
        argv = ["nsenter", "-t", pid, "-n", "/usr/bin/python3", "-I", "-c", program]
        return subprocess.run(argv, capture_output=True).returncode == 0

    def learned() -> list[str]:
        """Routes and addresses that the host has of an advertisement."""
        routes = net.host("ip", "-6", "route").splitlines()
        addresses = net.host("ip", "-6", "-o", "addr", "show", "dev", "ltsix").splitlines()
        return [
            line
            for line in (*routes, *addresses)
            if "proto ra" in line or "fd00:bad:" in line or line.startswith("default")
        ]

    # What comes in by the bridge, before the host's own network looks at it: packet(7).
    listen = (
        "import socket; s = socket.socket(17, 3, socket.htons(0x86DD)); s.bind(('ltsix', 0x86DD));"
        "print('on', flush=True)\n"
        "while True:\n"
        "    frame = s.recv(2048)\n"
        "    if frame[20] == 58 and frame[54] == 134: print('seen', flush=True); break\n"
    )
    heard = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{net.netns}", "/usr/bin/python3", "-I", "-c", listen],
        stdout=subprocess.PIPE,
    )
    assert heard.stdout is not None
    try:
        assert heard.stdout.readline() == b"on\n"
        # A link-local address may still be looked for elsewhere; only then is it sent from.
        await_that(advertise, 30, "the advertisement is sent")
        assert heard.communicate(timeout=20)[0] == b"seen\n", "it arrives at the host"
    finally:
        heard.kill()
    # What was received before the ping's answer has been looked at.
    inside(net, "rogue", "ping -6 -c 1 -W 5 fd00:20::1")
    assert learned() == []
    # One that a host heeds: it is told to.
    net.host("/usr/sbin/sysctl", "-w", "net.ipv6.conf.ltsix.accept_ra=2")

    def heeded() -> bool:
        return advertise() and len(learned()) >= 2

    await_that(heeded, 30, "the route and the prefix are learned")
    # The sender hears itself too. Routes by advertisement have flag RTF_ADDRCONF: ipv6_route.h.
    for name in ("rogue", "peer"):
        inside(net, name, "ping -6 -c 1 -W 5 fd00:20::1")
        assert "fd000bad" not in inside(net, name, "cat /proc/net/if_inet6"), name
        routes = inside(net, name, "cat /proc/net/ipv6_route").splitlines()
        assert not [line for line in routes if int(line.split()[8], 16) & 0x40000], name


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_every_version_of_a_configuration(net: NetworkedLighterd, version: str) -> None:
    document = {**net.bridge("a", "10.20.0.0/24"), "cniVersion": version}
    if version == "0.3.1":  # Debian's firewall does not speak it: refused, and undone
        net.write("10-a.conflist", document)
        refused = net.ctl("run", "--network", "a", IMAGE, "one", "true")
        assert "incompatible CNI versions" in refused.stderr.decode()
        settled(net.left_of_networks)
        del document["plugins"][-1]
    net.write("10-a.conflist", document)
    run(net, "--network", "a", "-p", "8080:80", "one")
    assert net.addresses_of("one")[0].startswith("10.20.0.")
    checked = net.ctl("network", "check", "one").stdout.decode()
    assert ("unknown" if version == "0.3.1" else "ok") in checked


def test_plugins_of_debian(net: NetworkedLighterd) -> None:
    """ptp, macvlan, loopback, bandwidth; one configuration without a version, of one plugin."""
    net.host("ip", "link", "add", "ltparent", "type", "bridge")
    net.host("ip", "link", "set", "ltparent", "up")
    net.write("10-ptp.conf", {"name": "ptp", "type": "ptp", "ipam": _of_one(net, "10.30.0.0/24")})
    macvlan = {"type": "macvlan", "master": "ltparent", "ipam": net.ipam("10.31.0.0/24")}
    net.write("20-mac.conf", {"cniVersion": "0.3.1", "name": "mac", **macvlan})
    net.write("30-lo.conf", {"cniVersion": "0.4.0", "name": "lo", "type": "loopback"})
    slow = net.bridge("slow", "10.32.0.0/24")
    rate = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000}
    slow["plugins"].append({"type": "bandwidth", **rate, "egressBurst": 8_000_000})
    net.write("40-slow.conflist", slow)
    networks = ("ptp", "mac", "lo", "slow")
    run(net, *(word for name in networks for word in ("--network", name)), "many")
    names = [one["network"] for one in net.task("many")["networks"]]
    assert names == list(networks)
    addresses = net.addresses_of("many")
    for subnet in ("10.30.0.", "10.31.0.", "10.32.0."):
        assert any(address.startswith(subnet) for address in addresses), addresses
    assert "ltslow" in net.host("ip", "-br", "link")
    assert "tbf" in net.host("tc", "qdisc", "show")
    assert "eth3" in inside(net, "many", "ip -o link")
    listed = net.ctl("network", "ls", check=True).stdout.decode()
    assert "0.1.0" in listed.splitlines()[1]
    net.ctl("rm", "-f", "many", check=True)
    net.host("ip", "link", "del", "ltparent")


def _of_one(net: NetworkedLighterd, subnet: str) -> dict[str, str]:
    """host-local's oldest form."""
    return {"type": "host-local", "subnet": subnet, "dataDir": str(net.addresses)}


def test_shared_and_absent_networks(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    run(net, "--network", "a", "first", command=SERVE)
    run(net, "--network", "container:first", "second")
    await_that(
        lambda: net.ctl("exec", "second", "wget", "-qO-", "http://127.0.0.1/").stdout, 30, "shared"
    )
    same = inside(net, "first", "readlink /proc/self/ns/net")
    assert inside(net, "second", "readlink /proc/self/ns/net") == same
    assert "first" in inside(net, "second", "cat /etc/hosts")
    run(net, "--network", "none", "alone")
    assert "eth0" not in inside(net, "alone", "ip -o link")
    run(net, "--network", "host", "open")
    assert "lta" in inside(net, "open", "ip -o link")
    both = net.ctl("run", "--network", "host", "--network", "a", IMAGE, "x", "true")
    assert both.returncode == 2
    mixed = net.ctl("run", "--net-host", "--cni", IMAGE, "x", "true")
    assert "both the host's and another" in mixed.stderr.decode()


def test_connect_and_disconnect_a_running_container(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "bare", command=SERVE)  # of its own network there is a loopback alone
    net.ctl("network", "connect", "a", "bare", check=True)
    (address,) = net.addresses_of("bare")
    await_that(lambda: net.fetch(f"http://{address}/"), 30, "it is reached by its new address")
    net.ctl("network", "connect", "b", "bare", check=True)
    assert len(net.addresses_of("bare")) == 2
    again = net.ctl("network", "connect", "b", "bare")
    assert "already" in again.stderr.decode()
    net.ctl("network", "disconnect", "a", "bare", check=True)
    assert [one["network"] for one in net.task("bare")["networks"]] == ["b"]
    assert "eth0" not in inside(net, "bare", "ip -o link")
    inspected = json.loads(net.ctl("network", "inspect", "b", check=True).stdout)
    assert [one["id"] for one in inspected["containers"]] == ["bare"]
    # It is in its definition: the next start has it.
    net.ctl("kill", "bare", check=True)
    net.ctl("wait", "bare", check=True)
    net.ctl("tasks", "rm", "bare", check=True)
    net.ctl("tasks", "start", "-d", "bare", check=True)
    assert [one["network"] for one in net.task("bare")["networks"]] == ["b"]
    assert "ltb" in net.host("ip", "-br", "link")
    net.ctl("network", "disconnect", "b", "bare", check=True)
    missing = net.ctl("network", "disconnect", "b", "bare")
    assert missing.returncode == 1
    host = net.ctl("run", "-d", "--net-host", IMAGE, "open", "sleep", "600")
    assert host.returncode == 0
    refused = net.ctl("network", "connect", "a", "open")
    assert "the host's network" in refused.stderr.decode()


def test_the_hosts_file_follows_a_connect(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "--network", "a", "one")
    net.ctl("network", "connect", "b", "one", check=True)
    _, second = net.addresses_of("one")
    assert f"{second}\tone\n" in inside(net, "one", "cat /etc/hosts")
    inside(
        net, "one", "echo 192.0.2.1 mine >>/etc/hosts; echo nameserver 192.0.2.2 >/etc/resolv.conf"
    )
    net.ctl("network", "disconnect", "b", "one", check=True)
    hosts = inside(net, "one", "cat /etc/hosts")
    assert second not in hosts and hosts.endswith("192.0.2.1 mine\n")
    net.ctl("network", "connect", "b", "one", check=True)
    assert "192.0.2.1 mine\n" in inside(net, "one", "cat /etc/hosts")
    assert inside(net, "one", "cat /etc/resolv.conf") == "nameserver 192.0.2.2\n"


def test_containers_of_a_network_find_each_other_by_name(net: NetworkedLighterd) -> None:
    """From the start on, after a connect and a new address, until one has gone; not across."""
    net.ctl("network", "create", "one", check=True)
    net.ctl("network", "create", "two", check=True)
    run(net, "--network", "one", "my_web", command=SERVE)
    run(net, "--network", "one", "client", command="echo 192.0.2.1 mine >>/etc/hosts; sleep 600")
    run(net, "--network", "two", "stranger")

    def hosts(name: str) -> str:
        return inside(net, name, "cat /etc/hosts")

    for called in ("my_web", "my-web"):
        inside(net, "client", f"ping -c 1 -W 5 {called}")
    (address,) = net.addresses_of("client")
    assert f"{address}\tclient\n" in hosts("my_web"), "who was there first knows it too"
    assert "web" not in hosts("stranger") and "stranger" not in hosts("my_web")
    net.ctl("network", "connect", "one", "stranger", check=True)
    assert "stranger" in hosts("client") and "my_web" in hosts("stranger")
    net.ctl("network", "disconnect", "one", "stranger", check=True)
    assert "stranger" not in hosts("client") and "my_web" not in hosts("stranger")
    net.kill9()
    net.start()
    net.ctl("rm", "-f", "my_web", check=True)
    await_that(lambda: "web" not in hosts("client"), 20, "the name goes with its container")
    run(net, "--network", "one", "later")
    assert "later" in hosts("client") and "192.0.2.1 mine" in hosts("client")


def test_restarted_it_has_its_network_again(net: NetworkedLighterd) -> None:
    plugin = {"capabilities": {"ips": True}}
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24", **plugin))
    flags = ("--network", "a", "--ip", "10.20.0.50", "-p", "8080:80")
    run(net, *flags, "one", command=SERVE)
    for _ in range(2):
        net.ctl("kill", "one", check=True)
        net.ctl("wait", "one", check=True)
        net.ctl("tasks", "rm", "one", check=True)
        net.ctl("tasks", "start", "-d", "one", check=True)
        assert net.addresses_of("one") == ["10.20.0.50"]
    await_that(lambda: net.fetch("http://10.20.0.1:8080/"), 30, "its port answers again")


def test_an_end_gives_everything_back(net: NetworkedLighterd) -> None:
    """Without anybody deleting the task."""
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    net.ctl("run", "--network", "a", "-p", "8080:80", IMAGE, "short", "true", check=True)
    run(net, "--network", "a", "-p", "8081:80", "dies", command="exit 3")
    settled(net.left_of_networks)
    assert net.task("dies")["networks"] == []


def test_a_container_keeps_its_network_through_a_restart_of_the_manager(
    net: NetworkedLighterd,
) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    run(net, "--network", "a", "-p", "8080:80", "web", command=SERVE)
    run(net, "bare")
    net.ctl("network", "connect", "a", "bare", check=True)
    before = net.addresses_of("web"), net.addresses_of("bare")
    await_that(lambda: net.fetch("http://10.20.0.1:8080/"), 30, "it answers")
    net.kill9()
    assert net.fetch("http://10.20.0.1:8080/") == "hello from web\n"
    net.start()
    assert (net.addresses_of("web"), net.addresses_of("bare")) == before
    assert net.fetch("http://10.20.0.1:8080/") == "hello from web\n"
    net.ctl("exec", "bare", "ping", "-c", "1", "-W", "3", before[0][0], check=True)


def test_sec_86_flushed_rules_are_reported_and_come_back(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    run(net, "--network", "a", "-p", "8080:80", "web", command=SERVE)
    assert net.ctl("network", "check").returncode == 0, net.ctl("network", "check").stdout
    (address,) = net.addresses_of("web")
    net.host("iptables", "-t", "nat", "-F")
    broken = net.ctl("network", "check")
    assert broken.returncode == 1
    assert b"failed" in broken.stdout
    reloaded = net.ctl("network", "reload", "web")
    assert reloaded.returncode == 0, reloaded.stdout
    assert b"repaired" in reloaded.stdout
    assert net.addresses_of("web") == [address]
    await_that(lambda: net.fetch("http://10.20.0.1:8080/"), 30, "the port answers again")
    assert net.ctl("network", "check").returncode == 0


def test_sec_72_a_plugins_name_is_no_path(net: NetworkedLighterd) -> None:
    canary = net.plugin("canary", "#!/bin/sh\ntouch /tmp/lt-canary\n")
    document = {"cniVersion": "1.0.0", "name": "evil", "type": f"../../{canary}"}
    net.write("10-evil.conf", document)
    refused = net.ctl("run", "--network", "evil", IMAGE, "one", "true")
    assert "is no plugin's name" in refused.stderr.decode()
    nested = net.bridge("nested", "10.20.0.0/24")
    nested["plugins"][0]["ipam"] = {"type": "../canary"}
    net.write("20-nested.conflist", nested)
    assert net.ctl("run", "--network", "nested", IMAGE, "one", "true").returncode == 125
    assert not os.path.exists("/tmp/lt-canary")
    listed = net.ctl("network", "ls")
    assert "10-evil.conf" in listed.stderr.decode()
    safe = net.plugin("loose", "#!/bin/sh\ntouch /tmp/lt-canary\n")
    safe.chmod(0o777)
    net.write("30-loose.conf", {"cniVersion": "1.0.0", "name": "loose", "type": "loose"})
    refused = net.ctl("run", "--network", "loose", IMAGE, "one", "true")
    assert "others than root may change it" in refused.stderr.decode()


def test_created_networks_do_not_overlap(net: NetworkedLighterd) -> None:
    for name in ("one", "two"):
        net.ctl("network", "create", name, "--ipv6", check=True)
    rows = json.loads(net.ctl("network", "ls", "--format", "json", check=True).stdout)
    subnets = [subnet for row in rows for subnet in row["subnets"]]
    assert len(set(subnets)) == 4, subnets
    again = net.ctl("network", "create", "three", "--subnet", subnets[0])
    assert "in use" in again.stderr.decode()
    run(net, "--network", "one", "--network", "two", "both")
    assert len(net.addresses_of("both")) == 4
    net.ctl("network", "create", "inner", "--internal", check=True)
    run(net, "--network", "inner", "closed")
    assert "default" not in inside(net, "closed", "ip route")
    net.ctl("rm", "-f", "both", "closed", check=True)
    net.ctl("network", "rm", "one", "two", "inner", check=True)
    theirs = net.write("50-theirs.conflist", net.bridge("theirs", "10.20.0.0/24"))
    refused = net.ctl("network", "rm", "theirs")
    assert str(theirs) in refused.stderr.decode()
    assert theirs.exists()


@pytest.fixture
def outside(net: NetworkedLighterd) -> Iterator[str]:
    """A machine beyond the host, which routes to the containers' networks; yields its name."""
    name = f"{net.netns}-out"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        net.host("ip", "link", "add", "ltup", "type", "veth", "peer", "name", "up0", "netns", name)
        net.host("ip", "address", "add", "198.51.100.1/24", "dev", "ltup")
        net.host("ip", "link", "set", "ltup", "up")
        for words in (
            "link set lo up",
            "address add 198.51.100.2/24 dev up0",
            "link set up0 up",
            "route add 10.0.0.0/8 via 198.51.100.1",
        ):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield name
    finally:
        net.host("ip", "link", "del", "ltup", check=False)
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_created_networks_are_kept_apart(net: NetworkedLighterd, outside: str) -> None:
    """Also an internal one from the rest of the world; what is published answers everybody else."""
    subnets = {"front": "10.51.0.0/24", "back": "10.52.0.0/24", "inn": "10.53.0.0/24"}
    for name, subnet in subnets.items():
        internal = ("--internal",) if name == "inn" else ()
        net.ctl("network", "create", name, "--subnet", subnet, *internal, check=True)
    run(net, "--network", "back", "-p", "8080:80", "web", command=SERVE)
    run(net, "--network", "inn", "inner", command=SERVE)
    for name in ("front", "back", "inn"):
        run(net, "--network", name, f"from-{name}")
    addresses = {name: net.addresses_of(name)[0] for name in ("web", "inner", "from-inn")}
    # As a container that makes its frames by hand reaches its gateway without a route.
    pid = str(net.task("from-inn")["pid"])
    default = ("ip", "route", "add", "default", "via", "10.53.0.1")
    subprocess.run(["nsenter", "-t", pid, "-n", *default], check=True)

    def fetched(one: str, url: str) -> bool:
        return net.ctl("exec", one, "timeout", "3", "wget", "-qO-", url).returncode == 0

    await_that(lambda: fetched("from-back", f"http://{addresses['web']}/"), 30, "on its own bridge")
    await_that(lambda: fetched("from-inn", f"http://{addresses['inner']}/"), 30, "on the inner one")
    # By the host's address on any of its sides, as docker with its proxy has it.
    for one, host in (("from-front", "10.51.0.1"), ("from-back", "198.51.100.1")):
        await_that(lambda: fetched(one, f"http://{host}:8080/"), 30, f"{one}: published")  # noqa: B023
    assert not fetched("from-front", f"http://{addresses['web']}/")
    assert not fetched("from-front", f"http://{addresses['inner']}/")
    assert not fetched("from-inn", f"http://{addresses['web']}/")
    assert not fetched("from-inn", "http://10.53.0.1:8080/")
    beyond = f"--net=/run/netns/{outside}"
    front = str(net.task("from-front")["pid"])
    await_that(lambda: pings("198.51.100.2", "-t", front, "-n"), 30, "the way out of the front")
    assert not pings("198.51.100.2", "-t", pid, "-n")
    assert not pings(addresses["from-inn"], beyond)
    # The host is on every network of its own.
    await_that(lambda: pings("10.53.0.1", "-t", pid, "-n"), 30, "the host answers the inner one")
    await_that(lambda: net.fetch(f"http://{addresses['inner']}/"), 30, "the inner one the host")

    net.ctl("rm", "-f", "web", "inner", *(f"from-{name}" for name in subnets), check=True)
    net.ctl("network", "rm", *subnets, check=True)
    rules = net.host("iptables", "-S")
    assert not [name for name in ("lt-front", "lt-back", "lti-inn") if name in rules], rules


def pings(address: str, *entered: str) -> bool:
    argv = ["nsenter", *entered, "busybox", "ping", "-c", "1", "-W", "3", address]
    return subprocess.run(argv, capture_output=True).returncode == 0


def test_rules_of_others_do_not_open_an_internal_network(
    net: NetworkedLighterd, outside: str
) -> None:
    """dockerd and libvirtd let through what is of their bridges, before all that is in FORWARD."""
    net.ctl("network", "create", "inn", "--subnet", "10.53.0.0/24", "--internal", check=True)
    run(net, "--network", "inn", "inner")
    (address,) = net.addresses_of("inner")
    pid = str(net.task("inner")["pid"])
    default = ("ip", "route", "add", "default", "via", "10.53.0.1")
    subprocess.run(["nsenter", "-t", pid, "-n", *default], check=True)
    theirs = [("FORWARD", way, "ltup", "-j", "ACCEPT") for way in ("-i", "-o")]
    for rule in theirs:
        net.host("iptables", "-I", *rule)
    try:
        await_that(lambda: pings("10.53.0.1", "-t", pid, "-n"), 30, "the host answers")
        await_that(lambda: pings("198.51.100.1", f"--net=/run/netns/{outside}"), 30, "as beyond")
        assert not pings(address, f"--net=/run/netns/{outside}")
        assert not pings("198.51.100.2", "-t", pid, "-n")
    finally:
        for rule in theirs:
            net.host("iptables", "-D", *rule)
    net.ctl("rm", "-f", "inner", check=True)
    net.ctl("network", "rm", "inn", check=True)


def test_rules_that_no_plugin_looks_for_come_back(net: NetworkedLighterd) -> None:
    for name, internal in (("front", ()), ("inn", ("--internal",))):
        net.ctl("network", "create", name, *internal, check=True)
        run(net, "--network", name, f"from-{name}")

    def kept() -> list[str]:
        rules = net.host("iptables", "-S").splitlines()
        rules += net.host("iptables", "-t", "mangle", "-S").splitlines()
        return sorted(rule for rule in rules if "lt-+" in rule or "lti-+" in rule)

    before = kept()
    assert len(before) == 3, before
    for rule in before:
        table = "mangle" if "lti-+" in rule else "filter"
        net.host("iptables", "-t", table, "-D", *rule.split()[1:])
    assert not kept()
    for name in ("front", "inn"):
        reloaded = net.ctl("network", "reload", f"from-{name}", check=True).stdout.decode()
        assert "repaired" in reloaded, reloaded
    assert kept() == before
    again = net.ctl("network", "reload", check=True).stdout.decode()
    assert "repaired" not in again, again
    net.ctl("rm", "-f", "from-front", "from-inn", check=True)
    net.ctl("network", "rm", "front", "inn", check=True)


def test_created_networks_are_kept_apart_by_ipv6(net: NetworkedLighterd) -> None:
    for name, prefix in (("front", "fd00:51"), ("back", "fd00:52")):
        net.ctl("network", "create", name, "--subnet", f"{prefix}::/64", "--ipv6", check=True)
        run(net, "--network", name, "-p", f"{prefix[-2:]}80:80", name, command=SERVE)
    (front,), (back,) = net.addresses_of("front"), net.addresses_of("back")

    def fetched(url: str) -> bool:
        return net.ctl("exec", "front", "timeout", "3", "wget", "-qO-", url).returncode == 0

    await_that(lambda: net.fetch(f"http://[{back}]/"), 30, "httpd answers the host")
    await_that(lambda: fetched(f"http://[{front}]/"), 30, "its own")
    await_that(lambda: fetched("http://[fd00:51::1]:5280/"), 30, "the published port of the other")
    assert not fetched(f"http://[{back}]/")


def test_many_at_once_have_addresses_of_their_own(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    names = [f"c{number}" for number in range(8)]
    running = [
        subprocess.Popen(
            net.ctl_argv("run", "-d", "--network", "a", IMAGE, name, "sleep", "600"),
            stdout=subprocess.DEVNULL,
        )
        for name in names
    ]
    assert [process.wait(60) for process in running] == [0] * 8
    addresses = {address for name in names for address in net.addresses_of(name)}
    assert len(addresses) == 8
    assert all(socket.inet_aton(address) for address in addresses)


def test_a_start_that_fails_gives_everything_back(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    failed = net.ctl("run", "-d", "--network", "a", "-p", "8080:80", IMAGE, "one", "/no/such")
    assert failed.returncode in (125, 126, 127)
    settled(net.left_of_networks)
    run(net, "--network", "a", "-p", "8080:80", "two")


def test_a_restart_policy_brings_the_network_again(net: NetworkedLighterd) -> None:
    plugin = {"capabilities": {"ips": True}}
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24", **plugin))
    flags = ("--network", "a", "--ip", "10.20.0.60", "-p", "8080:80", "--restart", "always")
    run(net, *flags, "one", command=SERVE)
    first = net.task("one")["pid"]
    net.ctl("exec", "one", "kill", "-9", "1")
    subprocess.run(["kill", "-9", str(first)], check=True)

    def again() -> bool:
        tasks = json.loads(net.ctl("ps", "--format", "json").stdout)
        return any(task["pid"] not in (0, first) for task in tasks if task["status"] == "running")

    await_that(again, 20, "it is started again")
    assert net.addresses_of("one") == ["10.20.0.60"]
    await_that(lambda: net.fetch("http://10.20.0.1:8080/"), 30, "its port answers again")


def test_sec_84_a_published_port_takes_no_others_traffic(net: NetworkedLighterd) -> None:
    """The same port of an address that is not the host's is reached, through the host, and the
    published one at the host's.
    """
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    net.write("20-b.conflist", net.bridge("b", "10.21.0.0/24"))
    run(net, "--network", "a", "-p", "8080:80", "published", command=SERVE)
    serve = "mkdir -p /www; echo other > /www/index.html; exec httpd -f -p 8080 -h /www"
    run(net, "--network", "b", "other", command=serve)
    run(net, "--network", "a", "client")
    (other,) = net.addresses_of("other")

    def fetched(address: str) -> bytes:
        return net.ctl("exec", "client", "wget", "-qO-", f"http://{address}:8080/").stdout

    await_that(lambda: fetched(other), 30, "the other one answers")
    assert fetched(other) == b"other\n"
    await_that(lambda: fetched("10.21.0.1"), 30, "the published one answers")
    assert fetched("10.21.0.1") != b"other\n"


def test_mapped_ids_have_a_network_of_their_own(net: NetworkedLighterd) -> None:
    """Its runtime makes the namespace, or /sys could not be mounted; it is attached after that."""
    net.base.chmod(0o711)  # mapped ids pass through it
    net.write("10-a.conflist", net.bridge("a", "10.20.0.0/24"))
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
    run(net, *maps, "--network", "a", "-p", "8080:80", "mapped", command=SERVE)
    (address,) = net.addresses_of("mapped")
    assert f"{address}\tmapped\n" in inside(net, "mapped", "cat /etc/hosts")
    assert inside(net, "mapped", "stat -c %u /etc/hosts") == "0\n"
    await_that(lambda: net.fetch("http://10.20.0.1:8080/"), 30, "the published port answers")
    net.plugin("odd", '#!/bin/sh\ntest "$CNI_COMMAND" != ADD || exit 3\n')
    net.write("20-odd.conf", {"cniVersion": "1.0.0", "name": "odd", "type": "odd"})
    argv = ("run", "-d", *maps, "--network", "odd", IMAGE, "fails", "true")
    assert net.ctl(*argv).returncode == 125
    assert "fails" not in net.ctl("ps", "-a").stdout.decode()


def test_a_container_that_is_started_again_has_its_network_again(net: NetworkedLighterd) -> None:
    net.write("10-a.conflist", net.bridge("a", "10.21.0.0/24"))
    run(net, "--network", "a", "--restart", "always", "web", command=SERVE)
    for count in (1, 2):
        os.kill(lives.task(net, "web")["pid"], signal.SIGKILL)
        await_that(lambda n=count: lives.task(net, "web")["restarts"] == n, 30, "it is again")
        await_that(lambda: lives.task(net, "web")["status"] == "running", 30, "it runs")
        (address,) = net.addresses_of("web")
        await_that(lambda at=address: net.fetch(f"http://{at}/"), 30, "httpd answers")
