"""What Lighter does not have, so that what others suffered from it cannot come: it stays away."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lighter.proto.paths
from lighter.daemon.network.made import DRIVERS, NewNetwork, configuration
from lighter.proto.errors import InvalidArgument

PACKAGE = Path(lighter.proto.paths.__file__).parent.parent


def names_in(tree: ast.Module) -> Iterator[str]:
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


def users_of(pattern: str) -> dict[str, set[str]]:
    """Sources of manager and shim, by path, that use a name like this, and all names there."""
    files = [file for folder in ("daemon", "shim") for file in (PACKAGE / folder).rglob("*.py")]
    assert len(files) > 100
    users = {}
    for file in files:
        # Most sources do not have the word at all; what is parsed may have it in a comment.
        if "pb" not in file.parts and re.search(pattern, text := file.read_text()):
            used = set(names_in(ast.parse(text, str(file))))
            if any(re.search(pattern, name) for name in used):
                users[str(file.relative_to(PACKAGE))] = used
    return users


def test_the_search_finds_what_is_there() -> None:
    assert "daemon/network/made.py" in users_of(r"\bDRIVERS\b")
    assert not users_of("no_such_name_anywhere")


def test_sec_70_nothing_looks_at_a_request_before_its_method_does() -> None:
    """A hook of gRPC's, or an authorizing plugin, would see bytes that are then read once more."""
    assert users_of("(?i)interceptor|authz") == {}


def test_sec_80_http_is_served_for_metrics_alone_and_no_stream_is_upgraded() -> None:
    assert users_of(r"\bhttp\.server|\bsocketserver\b|(?i:websocket)") == {}
    served = users_of(r"\bweb\b")
    added = {file: {name for name in used if "add_" in name} for file, used in served.items()}
    assert added == {"daemon/metrics/server.py": {"add_get"}}


@pytest.mark.parametrize("driver", ["overlay", "vxlan", "wireguard", "../overlay"])
def test_sec_87_a_network_spans_no_hosts(driver: str) -> None:
    """What is made are links of this host, and nobody encrypts for anybody."""
    assert set(DRIVERS) == {"bridge", "macvlan", "ipvlan", "ptp"}
    with pytest.raises(InvalidArgument, match="is none of bridge, macvlan, ipvlan, ptp"):
        configuration(NewNetwork("n", driver), "10.0.0.0/16", [], "/none")
