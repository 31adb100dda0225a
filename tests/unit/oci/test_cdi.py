"""Files of the Container Device Interface: which is found, and what it changes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.oci import cdi, cdi_edits
from lighter.daemon.oci.spec import generate
from lighter.daemon.oci.users import Identity
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound
from tests.unit.oci.builders import request

EDITS = {
    "env": ["A=2", "NEW=1"],
    "deviceNodes": [{"path": "/dev/made", "hostPath": "/dev/null", "permissions": "r"}],
    "mounts": [{"hostPath": "/srv", "containerPath": "/data", "options": ["ro", "nosuid"]}],
    "hooks": [{"hookName": "createContainer", "path": "/bin/x", "args": ["x", "y"], "timeout": 3}],
    "additionalGids": [0, 77],
    "intelRdt": {"closID": "c"},
}


def write(directory: Path, name: str, **changes: Any) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    document = {
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/thing",
        "devices": [{"name": "one", "containerEdits": EDITS}, {"name": "two"}],
        "containerEdits": {"env": ["OF=all"]},
    }
    path.write_text(json.dumps({**document, **changes}))
    path.chmod(0o644)
    return path


def test_the_edits_are_the_files_and_then_the_devices(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json")
    edits = cdi.find(
        ["vendor.example/thing=one", "vendor.example/thing=two"], [str(tmp_path / "etc")]
    )
    assert edits == [{"env": ["OF=all"]}, EDITS, {}]


def test_a_file_of_the_running_host_stands_above(tmp_path: Path) -> None:
    directories = [str(tmp_path / "etc"), str(tmp_path / "run")]
    write(tmp_path / "etc", "a.json", containerEdits={"env": ["WHERE=etc"]})
    write(tmp_path / "run", "b.json", containerEdits={"env": ["WHERE=run"]})
    (head, *_) = cdi.find(["vendor.example/thing=one"], directories)
    assert head == {"env": ["WHERE=run"]}
    write(tmp_path / "run", "c.yaml")
    with pytest.raises(FailedPrecondition, match=r"b\.json and .*c\.yaml have it"):
        cdi.find(["vendor.example/thing=one"], directories)


def test_what_is_missing_is_told_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json")
    write(tmp_path / "etc", "broken.json", kind="no kind")
    loose = write(tmp_path / "etc", "loose.json", kind="vendor.example/other")
    loose.chmod(0o666)
    directories = [str(tmp_path / "etc")]
    with pytest.raises(NotFound) as missing:
        cdi.find(["vendor.example/thing=nine"], directories)
    assert "there are vendor.example/thing=one, vendor.example/thing=two" in str(missing.value)
    assert "broken.json: kind is no vendor/class" in str(missing.value)
    with pytest.raises(NotFound, match="others than root may write"):
        cdi.find(["vendor.example/other=one"], directories)
    with pytest.raises(NotFound, match="nvidia-ctk"):
        cdi.gpu_devices(["all"], directories)
    for name in ("thing=one", "vendor/thing", "vendor/thing=", "vendor/thing=a b", "/dev/x=1"):
        with pytest.raises(InvalidArgument):
            cdi.find([name], directories)


def test_gpus_are_of_the_vendor_that_is_there(tmp_path: Path) -> None:
    write(tmp_path / "etc", "amd.json", kind="amd.com/gpu")
    directories = [str(tmp_path / "etc")]
    assert cdi.gpu_devices(["0", "all"], directories) == ("amd.com/gpu=0", "amd.com/gpu=all")
    write(tmp_path / "etc", "nvidia.json", kind="nvidia.com/gpu")
    assert cdi.gpu_devices(["0"], directories) == ("nvidia.com/gpu=0",)
    assert cdi.gpu_devices([], directories) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"cdiVersion": "7.0.0"},
        {"cdiVersion": None},
        {"cdiVersion": f"{'9' * 5000}.0.0"},
        {"devices": {}},
        {"devices": [{"name": "a b"}]},
        {"devices": [{"name": "a"}, {"name": "a"}]},
        {"containerEdits": []},
        {"containerEdits": {"netDevices": [{"hostInterfaceName": "x"}]}},
    ],
)
def test_a_file_that_is_not_understood(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "etc", "a.json", **changes)
    found, broken = cdi.load([str(tmp_path / "etc")])
    assert (found, len(broken)) == ([], 1)


def test_no_file_but_a_regular_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc" / "a.json")
    assert cdi.load([str(tmp_path / "etc"), "/nosuch"])[1] == [
        f"read {tmp_path}/etc/a.json: it is no regular file"
    ]


def test_the_edits_in_a_spec() -> None:
    spec = generate(request(identity=Identity(5, 6, (6,)), env=("A=1",)))
    rules = len(spec["linux"]["resources"]["devices"])
    cdi_edits.apply(spec, [EDITS])
    process, linux = spec["process"], spec["linux"]
    assert "A=2" in process["env"] and "NEW=1" in process["env"] and "A=1" not in process["env"]
    assert process["user"]["additionalGids"] == [6, 77]
    (device,) = linux["devices"]
    assert (device["path"], device["major"], device["minor"]) == ("/dev/made", 1, 3)
    assert (device["uid"], device["gid"]) == (5, 6)
    assert linux["resources"]["devices"][rules:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
    ]
    assert spec["mounts"][-1] == {
        "destination": "/data", "type": "bind", "source": "/srv",
        "options": ["ro", "nosuid", "rbind"],
    }  # fmt: skip
    assert spec["hooks"] == {
        "createContainer": [{"path": "/bin/x", "args": ["x", "y"], "timeout": 3}]
    }
    assert linux["intelRdt"] == {"closID": "c"}


@pytest.mark.parametrize(
    "edit",
    [
        {"env": "A=1"},
        {"env": ["A"]},
        {"deviceNodes": [{"path": "dev"}]},
        {"deviceNodes": [{"path": "/dev/nosuch"}]},
        {"deviceNodes": [{"path": "/dev/null", "major": "1"}]},
        {"deviceNodes": [{"path": "/dev/null", "permissions": "rx"}]},
        {"mounts": [{"hostPath": "/srv", "containerPath": "/proc/self/attr"}]},
        {"hooks": [{"hookName": "later", "path": "/x"}]},
        {"hooks": [{"hookName": "poststop", "path": "x"}]},
        {"hooks": [{"hookName": "poststop", "path": "/x", "timeout": -1}]},
    ],
)
def test_edits_that_are_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(LighterError):
        cdi_edits.apply(generate(request()), [edit])
