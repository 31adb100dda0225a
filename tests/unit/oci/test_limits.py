"""Limits as resources of a spec, and what a host without a control for one says."""

from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.oci.blockio import class_limits
from lighter.daemon.oci.confinement import AppArmor, check_rdt
from lighter.daemon.oci.controls import Controls, numbers, read_controls
from lighter.daemon.oci.initprogram import find_init, is_static
from lighter.daemon.oci.limits import BlockLimits, Limits, read_limits, resources
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound

ALL = Controls(
    frozenset(
        (
            *("cpu shares", "cpu quota", "cpuset", "memory", "swap", "pids"),
            *("block weight", "block throttle"),
        )
    ),
    frozenset((0, 1)),
    frozenset((0,)),
)
NOTHING = Controls(frozenset(), frozenset((0,)), frozenset((0,)))


def test_each_limit_by_its_name_in_the_spec() -> None:
    asked = Limits(
        cpus=1.5, cpu_shares=512, cpuset_cpus="0-1", memory=1 << 20, memory_swap=-1, pids=-1
    )
    assert resources(asked, ALL) == {
        "cpu": {"shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0-1"},
        "memory": {"limit": 1 << 20, "swap": -1},
        "pids": {"limit": -1},
    }
    assert resources(Limits(), NOTHING) == {}


def test_a_change_is_judged_with_what_is_known() -> None:
    known = {"memory": {"limit": 1 << 20, "swap": 4 << 20, "reservation": 1 << 19}}
    for asked, changed in (
        (Limits(memory_swap=-1), {"limit": 1 << 20, "swap": -1}),
        (Limits(memory=2 << 20), {"limit": 2 << 20, "swap": 4 << 20}),
        (Limits(memory_reservation=1 << 18), {"reservation": 1 << 18}),
    ):
        assert resources(asked, ALL, known) == {"memory": changed}
    for wrong in (Limits(memory=5 << 20), Limits(memory=1 << 18), Limits(memory_swap=1)):
        with pytest.raises(InvalidArgument, match="the memory limit"):
            resources(wrong, ALL, known)
    with pytest.raises(InvalidArgument, match="a memory limit must be set too"):
        resources(Limits(memory_swap=1), ALL)
    assert resources(Limits(cpu_quota=-1), ALL) == {"cpu": {"quota": -1}}


def test_no_limit_of_swap_is_none_where_memory_has_none() -> None:
    """As docker takes it, on a host without swap accounting too."""
    for controls in (ALL, NOTHING):
        assert resources(Limits(memory_swap=-1), controls) == {}
    known = {"memory": {"reservation": 1 << 19}}
    asked = Limits(memory_swap=-1, memory_reservation=1 << 18)
    assert resources(asked, ALL, known) == {"memory": {"reservation": 1 << 18}}


@pytest.mark.parametrize(
    "asked",
    [
        {"cpus": 1.0},
        {"cpu_shares": 2},
        {"cpuset_cpus": "0"},
        {"memory": 1},
        {"memory": 1, "memory_swap": 2},
        {"pids": 1},
        {"block": BlockLimits(weight=10)},
        {"block": BlockLimits(read_bps=(("/dev/null", 1),))},
    ],
)
def test_a_host_without_the_control_says_so(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="this host's kernel has no control for it"):
        resources(Limits(**asked), NOTHING)


def test_the_controls_of_a_v1_and_of_a_v2_host(tmp_path: Path) -> None:
    for name in ("memory/x/memory.memsw.limit_in_bytes", "memory/memory.limit_in_bytes"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "blkio/below").mkdir(parents=True)
    assert read_controls(str(tmp_path)).known == {"memory", "swap"}
    (tmp_path / "cgroup.controllers").write_text("cpu io\n")
    assert read_controls(str(tmp_path)).known == {
        *("cpu shares", "cpu quota", "block weight", "block throttle"),
    }


def test_lists_of_numbers() -> None:
    assert numbers("0-2,5\n") == (0, 1, 2, 5)
    for wrong in ("a", "2-1", "1-", "0-99999", "-1"):
        with pytest.raises(ValueError, match="list of numbers"):
            numbers(wrong)


@pytest.mark.parametrize(
    "body",
    [
        {"sausages": 1},
        {"memory": "1"},
        {"memory": True},
        {"memory": 1 << 70},
        {"cpus": -1},
        {"cpus": float("nan")},
        {"cpuset_cpus": 1},
        {"block": []},
        {"block": {"read_bps": [["/dev/x"]]}},
        {"block": {"read_bps": [["/dev/x", "1"]]}},
    ],
)
def test_a_request_of_the_wrong_types(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        read_limits(body)


def test_classes_of_disk_use() -> None:
    config = "Classes:\n  slow:\n  - Weight: 20\n  empty: []\n  odd:\n  - Sausages: 1\n"
    assert class_limits(config, "slow") == BlockLimits(weight=20)
    assert class_limits(config, "empty") == BlockLimits()
    for name in ("odd", "none"):
        with pytest.raises(LighterError):
            class_limits(config, name)
    for rule in ("ThrottleReadBps: 1M", "Weight: x", "Devices: [/dev/nosuch*]\n    Weight: 9"):
        with pytest.raises(LighterError):
            class_limits(f"Classes:\n  a:\n  - {rule}\n", "a")


def test_security_modules_that_this_host_has_or_has_not(tmp_path: Path) -> None:
    root = f"{tmp_path}/"
    with pytest.raises(FailedPrecondition, match="no AppArmor"):
        AppArmor(root).profile("p")
    assert AppArmor(root).profile("") == AppArmor(root).profile("unconfined") == ""
    for path, text in (
        ("sys/module/apparmor/parameters/enabled", "Y\n"),
        ("sys/kernel/security/apparmor/profiles", "p (enforce)\nother (complain)\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert AppArmor(root).profile("p") == "p"
    with pytest.raises(NotFound, match="not loaded"):
        AppArmor(root).profile("q")
    with pytest.raises(InvalidArgument):
        AppArmor(root).profile("a\nb")
    with pytest.raises(FailedPrecondition, match="no resctrl"):
        check_rdt("gold", root)
    (tmp_path / "sys/fs/resctrl").mkdir(parents=True)
    (tmp_path / "sys/fs/resctrl/schemata").touch()
    assert check_rdt("gold", root) == "gold"


def test_an_init_must_need_no_library(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is none here"):
        find_init(str(tmp_path))
    shell = tmp_path / "tini"
    shell.write_bytes(Path("/bin/sh").resolve().read_bytes())
    shell.chmod(0o755)
    with pytest.raises(NotFound, match="needs the host's libraries"):
        find_init(str(tmp_path))
    assert not is_static("/nosuch") and not is_static("/etc/passwd")
