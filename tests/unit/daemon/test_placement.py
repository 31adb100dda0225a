"""daemon/spawning/placement: cgroup roots of v1, v2 and hybrid hosts, and a sparing clean-up."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from lighter.daemon.spawning import placement
from lighter.daemon.spawning.placement import (
    Placement,
    hierarchies,
    place_by_hand,
    remove_empty,
    service_of,
)
from lighter.proto.paths import shims_cgroup
from tests.harness import await_that
from tests.processes import with_title


def hierarchy(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.procs").write_text("")
    return root


def test_a_v2_host_has_one(tmp_path: Path) -> None:
    hierarchy(tmp_path)
    hierarchy(tmp_path / "user.slice")
    assert hierarchies(str(tmp_path)) == [str(tmp_path)]


def test_a_hybrid_host_has_one_for_each_controller_and_links_count_once(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "unified"):
        hierarchy(tmp_path / name)
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "not-mounted").mkdir()
    wanted = [str(tmp_path / name) for name in ("cpu,cpuacct", "memory", "unified")]
    assert hierarchies(str(tmp_path)) == wanted


def test_a_host_without_cgroups_has_none(tmp_path: Path) -> None:
    assert hierarchies(str(tmp_path / "missing")) == []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hierarchies of a v1 host made of plain files, cpuset among them."""
    hierarchy(tmp_path / "memory")
    cpuset = hierarchy(tmp_path / "cpuset")
    (cpuset / "cpuset.cpus").write_text("0-1\n")
    (cpuset / "cpuset.mems").write_text("0\n")
    monkeypatch.setattr(placement, "hierarchies", lambda: hierarchies(str(tmp_path)))
    return tmp_path


def test_f62_a_spawner_is_moved_in_every_hierarchy(host: Path) -> None:
    for directory in ("cpuset/lighter-shims", "cpuset/lighter-shims/abc"):
        (host / directory).mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):  # the kernel makes them, empty
            (host / directory / name).write_text("\n")
    place_by_hand("abc", 4711)
    for name in ("memory", "cpuset"):
        assert (host / name / "lighter-shims/abc/cgroup.procs").read_text() == "4711"
    assert (host / "cpuset/lighter-shims/abc/cpuset.cpus").read_text() == "0-1\n"


def test_what_cannot_be_done_is_a_warning(host: Path, caplog: pytest.LogCaptureFixture) -> None:
    (host / "memory" / "lighter-shims").write_text("in the way")
    place_by_hand("abc", 4711)
    assert any("place spawner in" in record.getMessage() for record in caplog.records)


def test_only_empty_cgroups_of_this_instance_are_removed(host: Path) -> None:
    memory = host / "memory"
    (memory / "lighter/abc/default").mkdir(parents=True)
    (memory / "lighter/abc/used/container").mkdir(parents=True)
    (memory / "lighter/other/default").mkdir(parents=True)
    (memory / "lighter-shims/abc").mkdir(parents=True)
    remove_empty("abc")
    left = sorted(os.path.relpath(path, memory) for path, names, _ in os.walk(memory) if not names)
    assert left == ["lighter/abc/used/container", "lighter/other/default"]
    remove_empty("never-was")


@pytest.mark.root
def test_the_last_of_a_spawners_children_is_waited_for() -> None:
    """It is in the cgroup for a moment more, and would keep it there for good."""
    instance = f"test-{os.getpid()}"
    title = f"lighter-spare --instance {instance}"
    words = ["bash", "-c", f"exec -a '{title}' cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        await_that(lambda: with_title(title) == [child.pid], 20, "it has its title")
        place_by_hand(instance, child.pid)
        places = [Path(root + shims_cgroup(instance)) for root in hierarchies()]
        assert any(str(child.pid) in (place / "cgroup.procs").read_text() for place in places)
        ending = threading.Timer(0.1, child.stdin.close)
        ending.start()
        try:
            remove_empty(instance)
            assert any(place.exists() for place in places), "it has not ended"
            remove_empty(instance, 20.0)
        finally:
            ending.join()
    assert not [place for place in places if place.exists()]


def test_a_service_is_known_by_its_cgroup() -> None:
    hybrid = "4:memory:/\n1:name=systemd:/system.slice/lighterd.service\n0::/system.slice/x\n"
    assert service_of(hybrid) == "lighterd.service"
    assert service_of("0::/system.slice/lighterd.service/sub\n") == "lighterd.service"
    assert service_of("0::/user.slice/user-0.slice/session-1.scope\n") == ""
    assert service_of("4:memory:/a.service\n0::/\n") == ""


def test_f62_each_spawner_has_a_scope_of_its_own_until_systemd_refuses_one(host: Path) -> None:
    placement = Placement("abc", 7, scopes=True)
    first, second = placement.launcher(), placement.launcher()
    assert "--unit=lighter-shims-abc-7.scope" in first
    assert "--unit=lighter-shims-abc-7-2.scope" in second
    placement.started(4711, second)
    assert not (host / "memory/lighter-shims").exists(), "systemd has placed it"
    placement.refuse()
    assert placement.launcher() == []
    placement.started(4711, [])
    assert (host / "memory/lighter-shims/abc/cgroup.procs").read_text() == "4711"
    placement.loaded()
    assert "--unit=lighter-shims-abc-7-3.scope" in placement.launcher()
