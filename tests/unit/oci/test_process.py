"""The process of an exec, made from the container's own."""

import copy
from typing import Any

import pytest

from lighter.daemon.oci.process import ExecRequest, exec_process
from lighter.daemon.oci.spec import generate
from lighter.daemon.oci.users import Identity
from lighter.proto.errors import InvalidArgument
from tests.unit.oci.builders import request


def test_the_container_s_own_is_the_default() -> None:
    spec = generate(request())
    before = copy.deepcopy(spec)
    process = exec_process(spec, ExecRequest(("ls", "-l")))
    own = spec["process"]
    same = ("user", "env", "cwd", "capabilities", "rlimits", "noNewPrivileges", "oomScoreAdj")
    assert {key: process[key] for key in same} == {key: own[key] for key in same}
    assert (process["args"], process["terminal"]) == (["ls", "-l"], False)
    process["env"].append("X=1")
    process["user"]["additionalGids"].clear()
    process["capabilities"]["bounding"].clear()
    process["rlimits"][0]["hard"] = 1
    assert spec == before


def test_what_is_asked_for() -> None:
    process = exec_process(
        generate(request()),
        ExecRequest(
            ("sh",),
            env=("A=2", "PATH", "N=1"),
            cwd="/var/",
            identity=Identity(1000, 6, (6, 4)),
            terminal=True,
            console_size=(24, 80),
        ),
    )
    assert process["env"] == ["A=2", "TERM=xterm", "N=1"]
    assert process["cwd"] == "/var"
    assert process["user"] == {"uid": 1000, "gid": 6, "additionalGids": [6, 4]}
    assert process["consoleSize"] == {"height": 24, "width": 80}


def test_labels_are_kept_and_the_size_needs_a_terminal() -> None:
    spec = generate(request())
    spec["process"] |= {"apparmorProfile": "p", "selinuxLabel": "l"}
    process = exec_process(spec, ExecRequest(("sh",), console_size=(1, 1)))
    assert (process["apparmorProfile"], process["selinuxLabel"]) == ("p", "l")
    assert "consoleSize" not in process


@pytest.mark.parametrize(
    "wrong",
    [
        {"args": ()},
        {"args": ("",)},
        {"args": ("a\0",)},
        {"args": ("a",), "cwd": "tmp"},
        {"args": ("a",), "env": ("=1",)},
    ],
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        exec_process(generate(request()), ExecRequest(**wrong))
