"""How often a client without a manager tries."""

import pytest

from lighter.ctl import connect


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
