"""What the host's packet filter is asked for, when its program does not answer."""

from pathlib import Path

import pytest

from lighter.daemon.network import isolation


def test_rules_that_cannot_be_read_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("iptables", "ip6tables"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "iptables: can\'t do it" >&2\nexit 4\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    isolation.forget("lt-web")
    asked = (tmp_path / "asked").read_text()
    assert "-S CNI-ISOLATION-STAGE-2" in asked
    assert "-D" not in asked
