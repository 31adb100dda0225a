"""`ctl network`: of several, what fails for one is told, and the others have their turn."""

import json
from typing import Any

import pytest

from lighter.proto.errors import FailedPrecondition, NotFound
from tests.fakes.manager import Ask, FakeManager
from tests.unit.ctl.conftest import Ctl

NAMES = ("a", "gone", "stuck", "b")


def row(ask: Ask) -> Any:
    if ask.body["id"] == "gone":
        return NotFound("get container gone: there is none")
    if ask.body["id"] == "stuck":
        return FailedPrecondition("it is stuck")
    said = {"network": "n", "ifname": "eth0", "status": "ok", "reason": "", "repaired": False}
    return {"checked": [{"namespace": ask.namespace, "id": ask.body["id"], **said}]}


@pytest.mark.parametrize("verb", ["check", "reload"])
@pytest.mark.parametrize("named", [False, True])
def test_one_that_has_ended_keeps_no_other_from_its_turn(
    manager: FakeManager, ctl: Ctl, verb: str, named: bool
) -> None:
    manager.on("namespaces.list", {"namespaces": [{"name": "default"}]})
    manager.on("tasks.list", {"tasks": [{"id": name, "networks": ["n"]} for name in NAMES]})
    manager.on("containers.resolve", NotFound("none"))
    manager.on(f"networks.{verb}", row)
    done = ctl("--format", "json", "network", verb, *(NAMES if named else ()))
    assert [one["id"] for one in json.loads(done.stdout)] == ["a", "b"]
    told = [b"ctl: get container gone: there is none"] if named else []
    assert (done.returncode, done.stderr.splitlines()) == (1, [*told, b"ctl: it is stuck"])


def test_what_has_ended_meanwhile_is_no_failure(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("tasks.list", {"tasks": [{"id": name, "networks": ["n"]} for name in NAMES[:2]]})
    manager.on("networks.reload", row)
    done = ctl("-n", "default", "network", "reload")
    assert (done.returncode, done.stderr) == (0, b"")


def test_networks_are_removed_one_by_one(manager: FakeManager, ctl: Ctl) -> None:
    manager.on(
        "networks.delete", lambda ask: FailedPrecondition("b") if ask.body["name"] == "b" else {}
    )
    done = ctl("network", "rm", "a", "b", "c")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"a\nc\n", b"ctl: b\n")
