"""A manager in a network namespace of its own, so that no test touches the machine's network.

Only the network is its own: mounts, processes and cgroups are the host's, and the census sees
them. Bridges, veths and packet filter rules are counted in here.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyroute2 import NetNS

from tests import census
from tests.harness import Lighterd, settled

PLUGINS = next(
    (path for path in ("/usr/lib/cni", "/usr/libexec/cni") if os.path.exists(f"{path}/bridge")), ""
)
# What portmap, firewall and the manager make once for a host, and never take away.
_FIXTURES = (
    *("CNI-HOSTPORT", "CNI-FORWARD", "CNI-ADMIN", "CNI-ISOLATION", "CNI portfwd", "CNI firewall"),
    *("-i lti-+", "-o lti-+"),
)


class NetworkedLighterd(Lighterd):
    """`netns` is the name of the namespace that stands for the host; `conf_dir` is CNI's."""

    def __init__(self, owners: census.Owners, *, timeout_s: int = 20) -> None:
        assert PLUGINS, "CNI's plugins are missing: .ci/setup installs them"
        self.netns = f"lt-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        self.conf_dir = Path("/tmp") / f"{self.netns}-conf"
        self.bin_dir = Path("/tmp") / f"{self.netns}-bin"
        self.addresses = Path("/tmp") / f"{self.netns}-addresses"
        for directory in (self.conf_dir, self.bin_dir, self.addresses):
            directory.mkdir()
        config = (
            f'[plugins."io.lighter.v1".network]\nconf_dir = "{self.conf_dir}"\n'
            f'bin_dir = "{self.bin_dir}"\ntimeout_s = {timeout_s}\n'
        )
        super().__init__(owners, config=config)
        self._argv = ["nsenter", f"--net=/run/netns/{self.netns}", "--", *self._argv]

    def host(self, *argv: str, check: bool = True) -> str:
        """Run a program of the host in the manager's network."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.netns}", "--", *argv],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def fetch(self, url: str) -> str:
        """What a client on the host gets from there; "" when nobody answers."""
        program = (
            "import sys, urllib.request as r\n"
            "try: print(r.urlopen(sys.argv[1], timeout=3).read().decode(), end='')\n"
            "except OSError as err: print(err, file=sys.stderr)\n"
        )
        return self.host("/usr/bin/python3", "-I", "-c", program, url)

    def write(self, name: str, document: Mapping[str, Any]) -> Path:
        path = self.conf_dir / name
        path.write_text(json.dumps(document))
        return path

    def bridge(self, name: str, subnet: str, **plugin: Any) -> dict[str, Any]:
        """A configuration of one bridge; further words are fields of its plugin."""
        return {
            "cniVersion": "1.0.0",
            "name": name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": f"lt{name}",
                    "isGateway": True,
                    "ipMasq": True,
                    "ipam": self.ipam(subnet),
                    **plugin,
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
                {"type": "firewall"},
            ],
        }

    def ipam(self, *subnets: str) -> dict[str, Any]:
        return {
            "type": "host-local",
            "dataDir": str(self.addresses),
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
        }

    def plugin(self, name: str, text: str) -> Path:
        """A plugin of the test's own, found before the real ones."""
        path = self.bin_dir / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def task(self, container_id: str) -> dict[str, Any]:
        with self.client() as client:
            task: dict[str, Any] = client.call("tasks", "get", id=container_id)["task"]
            return task

    def addresses_of(self, container_id: str) -> list[str]:
        networks = self.task(container_id)["networks"]
        return [text.partition("/")[0] for one in networks for text in one["addresses"]]

    def left_of_networks(self) -> list[str]:
        """All that attachments leave when they are not undone; [] when no container has one."""
        with NetNS(self.netns) as netlink:
            links = [str(link.get("ifname")) for link in netlink.get_links()]
        left = [f"link {name}" for name in links if name.startswith(("veth", "ifb", "bwp"))]
        for program in ("iptables", "ip6tables"):
            for table in ("nat", "filter", "mangle"):
                rules = self.host(program, "-t", table, "-S").splitlines()
                left += [f"{program} {rule}" for rule in rules if self._is_of_one(rule)]
        reserved = [
            path
            for directory in (self.addresses, self.root / "addresses")
            for path in directory.glob("*/*")
            if path.name[0].isdigit() or ":" in path.name
        ]
        left += [f"address {path}" for path in reserved]
        for directory in (self.state / "netns", self.root / "network"):
            left += [str(path) for path in directory.glob("*")]
        return left

    def empty(self) -> None:
        """Its containers, bridges, configurations and plugins are gone, for the next test."""
        with self.client() as client:
            for row in client.call("containers", "list", cursor="", limit=100)["containers"]:
                client.call("containers", "delete", id=row["id"], force=True)
        settled(self.left_of_networks)
        self.remove_bridges()
        for path in (*self.conf_dir.iterdir(), *self.bin_dir.iterdir()):
            path.unlink()

    def remove_bridges(self) -> None:
        """Plugins leave them, with their addresses, to the next container."""
        listed = json.loads(self.host("ip", "-json", "link", "show", "type", "bridge") or "[]")
        for link in listed:
            if name := link.get("ifname"):
                self.host("ip", "link", "delete", name)

    def _is_of_one(self, rule: str) -> bool:
        if not rule.startswith(("-A", "-N")):
            return False
        return self.instance in rule or not any(mark in rule for mark in _FIXTURES) or "/32" in rule

    def close(self) -> None:
        try:
            super().close()
        finally:
            subprocess.run(["ip", "netns", "del", self.netns], check=True)
            for directory in (self.conf_dir, self.bin_dir, self.addresses):
                subprocess.run(["rm", "-rf", str(directory)], check=True)

    def _left_in_the_kernel(self) -> list[str]:
        return [*super()._left_in_the_kernel(), *self.left_of_networks()]


def run(manager: NetworkedLighterd, *flags: str, command: str = "sleep 600") -> None:
    """A detached container; `flags` end with its id."""
    *options, container_id = flags
    argv = ("run", "-d", *options, "docker.io/library/busybox:test", container_id)
    manager.ctl(*argv, "sh", "-c", command, check=True)


def inside(manager: NetworkedLighterd, container_id: str, command: str) -> str:
    done = manager.ctl("exec", container_id, "sh", "-c", command)
    assert done.returncode == 0, f"{command}: {done.stdout.decode()} {done.stderr.decode()}"
    return done.stdout.decode()
