"""What Lighter does not have, so that what others suffered from it cannot come: it stays away."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lighter.proto.paths
from lighter.daemon.network.made import DRIVERS, NewNetwork, configuration
from lighter.proto.errors import InvalidArgument

PACKAGE = Path(lighter.proto.paths.__file__).parent.parent


def sources() -> Iterator[tuple[Path, ast.Module]]:
    files = sorted(
        file for folder in ("daemon", "shim") for file in (PACKAGE / folder).rglob("*.py")
    )
    assert len(files) > 100
    for file in files:
        if file.parent.name != "pb":
            yield file.relative_to(PACKAGE), ast.parse(file.read_text(), str(file))


def names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.ImportFrom(module=str(name), names=imported):
                yield from (name, *(alias.name for alias in imported))
            case ast.Import(names=imported):
                yield from (alias.name for alias in imported)


def test_sec_70_nothing_looks_at_a_request_before_its_method_does() -> None:
    """A hook of gRPC's, or an authorizing plugin, would see bytes that are then read once more."""
    for file, tree in sources():
        found = [name for name in names(tree) if "interceptor" in name or "authz" in name.lower()]
        assert not found, f"{file}: {found}"


def test_sec_80_http_is_served_for_metrics_alone_and_no_stream_is_upgraded() -> None:
    served = {}
    for file, tree in sources():
        used = set(names(tree))
        assert not used & {"http.server", "socketserver", "websockets", "WebSocketResponse"}, file
        if "web" in used:
            served[str(file)] = {name for name in used if name.startswith("add_")}
    assert served == {"daemon/metricserver.py": {"add_get"}}


@pytest.mark.parametrize("driver", ["overlay", "vxlan", "wireguard", "../overlay"])
def test_sec_87_a_network_spans_no_hosts(driver: str) -> None:
    """What is made are links of this host, and nobody encrypts for anybody."""
    assert set(DRIVERS) == {"bridge", "macvlan", "ipvlan", "ptp"}
    with pytest.raises(InvalidArgument, match="is none of bridge, macvlan, ipvlan, ptp"):
        configuration(NewNetwork("n", driver), "10.0.0.0/16", [], "/none")
    for file, tree in sources():
        words = {name for name in names(tree) if name.lower() in ("vxlan", "xfrm", "wireguard")}
        assert not words, f"{file}: {words}"
