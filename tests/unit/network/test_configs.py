"""Which configurations there are, and which are refused with the reason."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.network import plugin
from lighter.daemon.network.chain import Chain, configuration, in_version
from lighter.daemon.network.configs import Configs, Network, parse
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound

BRIDGE = {"type": "bridge", "bridge": "ltx"}


def network(**fields: Any) -> Network:
    return parse(json.dumps({"name": "a", **fields}).encode(), "a.conflist")


def test_files_in_the_order_of_their_names_and_one_broken(tmp_path: Path) -> None:
    texts = {
        "20-b.conf": '{"cniVersion": "0.3.1", "name": "b", "type": "ptp"}',
        "10-a.conflist": '{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "bridge"}]}',
        "30-again.json": '{"name": "a", "type": "bridge"}',
        "05-broken.conflist": "{",
        "readme.txt": "no configuration",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "40-fifo.conf").mkdir()
    configs = Configs((str(tmp_path), "/nonexistent"))
    networks, unusable = configs.read()
    assert [one.name for one in networks] == ["a", "b"]
    assert [Path(one.path).name for one in unusable] == [
        "05-broken.conflist",
        "30-again.json",
        "40-fifo.conf",
    ]
    assert configs.first().name == configs.find("default").name == "a"
    with pytest.raises(NotFound, match=r"there are a, b .*05-broken.conflist: .*no JSON"):
        configs.find("c")
    with pytest.raises(NotFound):
        configs.find("default", exact=True)
    with pytest.raises(NotFound, match="ctl network create default"):
        Configs((str(tmp_path / "none"),)).find("default")


def test_a_network_named_default_is_the_default_one(tmp_path: Path) -> None:
    for name in ("alpha", "default"):
        (tmp_path / f"{name}.conf").write_text(json.dumps({"name": name, **BRIDGE}))
    configs = Configs((str(tmp_path),))
    assert (configs.find("default").name, configs.first().name) == ("default", "alpha")


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({}, "0.1.0"),
        ({"cniVersion": "0.3.1"}, "0.3.1"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0", "2.0.0"]}, "1.1.0"),
    ],
)
def test_versions(fields: dict[str, Any], version: str) -> None:
    assert network(**BRIDGE, **fields).version == version


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cniVersion": "9.9.9", **BRIDGE}, "cniVersion is '9.9.9'"),
        ({"type": "../bridge"}, "is no plugin's name"),
        ({"type": "/opt/x"}, "is no plugin's name"),
        ({"type": ".."}, "is no plugin's name"),
        ({"type": "bridge", "ipam": {"type": "a/b"}}, "is no plugin's name"),
        ({"type": "bridge", "ipam": "host-local"}, "ipam is no object"),
        ({"type": "bridge", "ipam": {"ranges": 5}}, "ipam.ranges is no list"),
        ({"type": "bridge", "runtimeConfig": [1]}, "runtimeConfig is no object"),
        ({"plugins": []}, "plugins is no list"),
        ({"plugins": [BRIDGE] * 65}, "plugins is no list"),
        ({"plugins": ["bridge"]}, "a plugin is no object"),
        ({"type": "bridge", "capabilities": [1]}, "capabilities is no object"),
        ({**BRIDGE, "name": "a b"}, "its name is 'a b'"),
        ({**BRIDGE, "cniVersions": "1.0.0"}, "cniVersions is no list"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        network(**fields)


@pytest.mark.parametrize(
    ("plugin_fields", "may"),
    [
        ({"ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}}, False),
        ({"ipam": {"type": "host-local", "ranges": [[{"subnet": "fd00::/64"}]]}}, True),
        ({"ipam": {"type": "dhcp"}}, True),
        ({}, True),
    ],
)
def test_ipv6_is_off_only_where_it_cannot_be_meant(
    plugin_fields: dict[str, Any], may: bool
) -> None:
    assert network(type="bridge", **plugin_fields).may_have_ipv6 is may


def test_what_a_plugin_reads() -> None:
    capable = {"type": "portmap", "capabilities": {"portMappings": True, "ips": False}}
    one = network(cniVersion="0.4.0", cniVersions=["0.4.0"], **capable)
    given = {"portMappings": [{"hostPort": 1}], "ips": ["10.0.0.1"]}
    previous = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd::2/64"}]}
    config = configuration(one, one.plugins[0], given, previous)
    assert config["runtimeConfig"] == {"portMappings": [{"hostPort": 1}]}
    assert "capabilities" not in config
    assert "cniVersions" not in config
    assert config["cniVersion"] == config["prevResult"]["cniVersion"] == "0.4.0"
    assert [ip["version"] for ip in config["prevResult"]["ips"]] == ["4", "6"]
    assert in_version(config["prevResult"], "1.0.0")["ips"] == previous["ips"]


def test_plugins_are_found_in_the_order_of_the_directories(tmp_path: Path) -> None:
    environ = {"CNI_PATH": f"{tmp_path}/own:relative:{tmp_path}/two"}
    directories = plugin.search_path(f"{tmp_path}/configured", environ)
    assert directories == (
        f"{tmp_path}/own",
        f"{tmp_path}/two",
        f"{tmp_path}/configured",
        "/opt/cni/bin",
        "/usr/libexec/cni",
        "/usr/lib/cni",
    )
    for name in ("own", "configured"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lt-x").write_text("#!/bin/sh\n")
    (tmp_path / "configured" / "lt-x").chmod(0o755)
    # The first one cannot be executed.
    assert plugin.find("lt-x", directories) == f"{tmp_path}/configured/lt-x"
    (tmp_path / "configured" / "lt-x").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="others than root may change it"):
        plugin.find("lt-x", directories)
    (tmp_path / "configured" / "lt-x").chmod(0o775)
    assert plugin.find("lt-x", directories), "root's own group is root"
    if os.geteuid() == 0:
        os.chown(tmp_path / "configured" / "lt-x", 0, 12345)
        with pytest.raises(FailedPrecondition, match="others than root may change it"):
            plugin.find("lt-x", directories)
    (tmp_path / "configured" / "lt-x").chmod(0o755)
    (tmp_path / "configured").chmod(0o777)
    with pytest.raises(FailedPrecondition, match=f"may change {tmp_path}/configured"):
        plugin.find("lt-x", directories)
    (tmp_path / "configured").chmod(0o1777)
    assert plugin.find("lt-x", directories), "in a sticky directory only its owner replaces it"
    with pytest.raises(LighterError, match="find CNI plugin lt-y"):
        Chain(directories, 1).check_plugins(network(type="lt-y"))
