"""A client without a manager, or with one that does not answer."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from lighter.ctl import connect, doctor, support
from lighter.ctl.cli import Session
from lighter.proto import codec
from lighter.proto.errors import DeadlineExceeded
from tests.fakes.manager import HOLD, FakeManager


def test_a_client_tries_often_while_a_start_may_be_under_way(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = connect.Manager(socket_path, "default", connect_timeout_s=10)
    assert manager.wait_ms() == 5
    manager.turn()
    assert manager.wait_ms() == 5
    monkeypatch.setattr(connect, "SOON_S", 0.0)
    assert manager.wait_ms() == 20
    manager.close()


def test_a_client_that_had_a_manager_tries_less_and_less_often(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many may be attached, and a start wants the processors. No start seems an eighth longer."""
    now = 100.0
    monkeypatch.setattr(connect.time, "monotonic", lambda: now)
    manager = connect.Manager(socket_path, "default", connect_timeout_s=10)
    manager._welcome(codec.Welcome(1, list(codec.SUPPORTED), []))
    tries = 0
    while now < 101:
        pause_ms = manager.wait_ms()
        assert pause_ms is not None
        away_ms = (now - 100) * 1000
        assert 5 <= pause_ms <= max(5, away_ms / 8), "it comes as soon as it is wanted"
        now += pause_ms / 1000
        tries += 1
    assert tries < 75
    manager.close()


def test_a_manager_that_does_not_answer_is_not_waited_for(
    manager: FakeManager, socket_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Doctor and support go on as without one: a disk that hangs may hold its threads."""
    monkeypatch.setattr(doctor, "CALL_S", 1.0)
    monkeypatch.setattr(support, "CALL_S", 1.0)
    for module in (doctor, support):
        monkeypatch.setattr(module, "SOON_S", 3.0)
    for method in ("system.doctor", "containers.get"):
        manager.on(method, HOLD)
    manager.on("namespaces.list", {"namespaces": [{"name": "default"}]})
    manager.on("containers.list", {"containers": [{"id": "a"}, {"id": "b"}], "next": None})
    program = tmp_path / "lighterd"
    program.write_text("#!/bin/sh\necho '[]'\n")
    program.chmod(0o755)
    with Session() as session:
        session.address = socket_path
        (found,) = doctor.examination(session, str(program))
        assert found["found"].endswith("1 s are over") and "it hangs" in found["advice"]
    with Session() as session:
        session.address = socket_path
        support.write(session, str(tmp_path / "bundle"), str(program))
    with tarfile.open(tmp_path / "bundle") as bundle:
        (name,) = (one for one in bundle.getnames() if one.endswith("missing.txt"))
        file = bundle.extractfile(name)
        assert file is not None
        missing = file.read().decode()
    assert "objects.json: wait for" in missing
    assert manager.asked("containers.get").body == {"id": "a"}
    assert not manager.was_asked("containers.get")
    with Session() as session:  # a time that was asked for is the command's, as ever
        session.address, session.timeout_s = socket_path, 0.1
        with pytest.raises(DeadlineExceeded):
            doctor.examination(session, str(program))


def test_a_program_that_hangs_is_not_waited_for() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        doctor.said_by(["sleep", "1000"], 0.1)
