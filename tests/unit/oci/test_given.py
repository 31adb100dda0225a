"""Whole specs of callers: what no runtime takes, and what a check must not be passed by with."""

import copy
import json
from typing import Any

import pytest

from lighter.daemon.oci.given import read_spec
from lighter.proto.errors import InvalidArgument

GOOD: dict[str, Any] = {
    "process": {"args": ["true"]},
    "root": {"path": "/srv/root"},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
}


def test_one_that_can_be_is_taken_as_it_is() -> None:
    assert read_spec(json.dumps(GOOD)) == GOOD


@pytest.mark.parametrize("namespaces", [None, [], [{"type": "pid"}]])
def test_one_without_mounts_of_its_own_is_refused(namespaces: Any) -> None:
    spec = copy.deepcopy(GOOD)
    spec["linux"]["namespaces"] = namespaces
    with pytest.raises(InvalidArgument, match="none of type mount"):
        read_spec(json.dumps(spec))


@pytest.mark.parametrize(
    ("path", "key", "meant"),
    [
        ((), "Mounts", "mounts"),
        ((), "proceſs", "process"),  # Go folds as Unicode does
        (("root",), "PATH", "root.path"),
        (("linux",), "CgroupsPath", "linux.cgroupsPath"),
        (("mounts", 0), "Destination", "mounts.destination"),
        (("linux", "namespaces", 1), "Path", "linux.namespaces.path"),
    ],
)
def test_a_key_in_other_cases_is_refused(path: tuple[Any, ...], key: str, meant: str) -> None:
    spec = copy.deepcopy(GOOD)
    place: Any = spec
    for step in path:
        place = place[step]
    place[key] = "/etc"
    with pytest.raises(InvalidArgument, match=f"is to be {meant}$"):
        read_spec(json.dumps(spec))
