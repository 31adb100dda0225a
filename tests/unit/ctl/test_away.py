"""How often a client without a manager tries."""

import pytest

from lighter.ctl import connect
from lighter.proto import codec


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
