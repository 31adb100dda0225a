"""A delete without the runtime: only where there are but runc's own files and empty cgroups."""

from pathlib import Path

import pytest

from lighter.shim import runcstate
from lighter.shim.cgroup import Cgroup

# As runc writes it, with what stands between the words left out.
STATE = '{"config":{"Hooks":{"poststart":null,"poststop":null}},"intel_rdt_path":""}'


def leave(directory: Path, *names: str, state: str = STATE) -> str:
    directory.mkdir()
    for name in names:
        (directory / name).write_text(state if name == "state.json" else "")
    return str(directory)


@pytest.mark.parametrize("names", [("state.json",), ("state.json", "exec.fifo")])
def test_state_and_cgroups_are_removed(tmp_path: Path, names: tuple[str, ...]) -> None:
    state = leave(tmp_path / "state", *names)
    groups = [leave(tmp_path / name) for name in ("cpu", "memory", "beside")]
    # Two controllers may share one hierarchy.
    v1 = {"cpu": groups[0], "cpuacct": groups[0], "memory": groups[1]}
    assert runcstate.delete(state, Cgroup(v1, "", groups[2]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [(), ("status",), ("state.json", "config.json")])
def test_another_runtimes_state_is_left_to_it(tmp_path: Path, names: tuple[str, ...]) -> None:
    state = leave(tmp_path / "state", *names)
    group = leave(tmp_path / "group")
    assert not runcstate.delete(state, Cgroup({}, group))
    assert Path(group).exists()
    assert sorted(path.name for path in Path(state).iterdir()) == sorted(names)


def test_no_state_is_left_to_the_runtime(tmp_path: Path) -> None:
    assert not runcstate.delete(str(tmp_path / "state"), Cgroup({}, ""))


def test_a_cgroup_that_is_not_empty_is_left_to_the_runtime(tmp_path: Path) -> None:
    state = leave(tmp_path / "state", "state.json")
    group = leave(tmp_path / "group")
    leave(tmp_path / "group" / "deeper")
    assert not runcstate.delete(state, Cgroup({"memory": group}, ""))
    assert Path(state, "state.json").exists()


@pytest.mark.parametrize(
    "state",
    [
        STATE.replace('"poststop":null', '"poststop":[{"path":"/bin/true"}]'),
        STATE.replace('"intel_rdt_path":""', '"intel_rdt_path":"/sys/fs/resctrl/c"'),
        STATE.replace('"poststop":null', r'"a":"\"poststop\":null"'),
        "{}",
        "",
    ],
    ids=["hook", "rdt", "a text of the same words", "unknown", "empty"],
)
def test_a_container_with_more_to_do_is_left_to_the_runtime(tmp_path: Path, state: str) -> None:
    directory = leave(tmp_path / "state", "state.json", state=state)
    group = leave(tmp_path / "group")
    assert not runcstate.delete(directory, Cgroup({"memory": group}, ""))
    assert Path(group).exists()
    assert Path(directory, "state.json").exists()
