"""A whole shim as a process, against runtimes that behave and others that do not."""

from pathlib import Path

from tests.unit.shim import runtimes
from tests.unit.shim.manager import FakeManager


def test_a_life(manager: FakeManager, tmp_path: Path) -> None:
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime"))
    shim.call("start")
    shim.kill()
    assert shim.event("exit")["exit_status"] == 137
    shim.wait_end()
    assert shim.topics() == ["create", "start", "exit", "closed"]
    assert not Path(shim.order["exit_record"]).exists()
    assert manager.reports() == ""
