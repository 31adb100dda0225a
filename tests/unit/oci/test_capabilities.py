"""Default, added and dropped capabilities."""

import pytest

from lighter.daemon.oci.capabilities import ALL, DEFAULT, capability_sets, from_mask, select
from lighter.proto.errors import InvalidArgument


def test_the_numbers_are_the_kernels() -> None:
    numbers = {"CAP_KILL": 5, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27, "CAP_CHECKPOINT_RESTORE": 40}
    assert {name: ALL.index(name) for name in numbers} == numbers
    assert len(set(ALL)) == len(ALL) == 41


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), DEFAULT),
        (("NET_ADMIN",), (), (*DEFAULT, "CAP_NET_ADMIN")),
        (("cap_net_admin", "NET_ADMIN"), (), (*DEFAULT, "CAP_NET_ADMIN")),
        (("KILL",), (), DEFAULT),
        ((), ("ALL",), ()),
        (("KILL",), ("all",), ("CAP_KILL",)),
        (("ALL",), (), ALL),
        (("ALL",), ("SYS_ADMIN",), tuple(name for name in ALL if name != "CAP_SYS_ADMIN")),
        (("SYS_TIME",), ("SYS_TIME",), DEFAULT),
        ((), ("NET_RAW",), tuple(name for name in DEFAULT if name != "CAP_NET_RAW")),
    ],
)
def test_select(add: tuple[str, ...], drop: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert select(add, drop) == expected


def test_privileged_means_what_this_host_has() -> None:
    assert select(privileged=True, available=ALL[:38]) == ALL[:38]
    assert select(("ALL",), available=frozenset(ALL[:38])) == ALL[:38]
    assert "CAP_MKNOD" not in select(available=("CAP_KILL", "CAP_CHOWN"))
    assert "CAP_BPF" not in select(drop=("BPF",), privileged=True)


@pytest.mark.parametrize(
    ("add", "drop"),
    [(("NET_ROOT",), ()), ((), ("",)), (("CAP_ALL",), ()), (("ALL",), ("ALL",))],
)
def test_refused(add: tuple[str, ...], drop: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        select(add, drop)


def test_a_capability_that_the_host_lacks() -> None:
    with pytest.raises(InvalidArgument, match="this host"):
        select(("BPF",), available=ALL[:38])


def test_masks() -> None:
    assert from_mask(0) == ()
    assert from_mask(1 << 21 | 1) == ("CAP_CHOWN", "CAP_SYS_ADMIN")
    assert from_mask((1 << 64) - 1) == ALL


def test_the_sets_are_three_and_separate() -> None:
    sets = capability_sets(("CAP_KILL",))
    assert sets.keys() == {"bounding", "effective", "permitted"}
    sets["bounding"].clear()
    assert sets["effective"] == ["CAP_KILL"]
