"""The exit record: the old bytes or the new ones, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lighter.shim import exitrecord

_WRITE = """
import sys
from lighter.shim import exitrecord
exitrecord.write(sys.argv[1], {"exit_status": int(sys.argv[2])}, durable=sys.argv[3] == "durable")
"""


def write(path: Path, status: int, durable: bool, prefix: list[str], **environ: str) -> int:
    script = [sys.executable, "-I", "-c", _WRITE, str(path), str(status)]
    done = subprocess.run(
        [*prefix, *script, "durable" if durable else "quick"],
        env={**os.environ, **environ},
        capture_output=True,
        timeout=60,
    )
    return done.returncode


@pytest.mark.parametrize("durable", [False, True])
def test_a_record_is_written_and_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "c.json"
    for status in (1, 2):
        exitrecord.write(str(path), {"exit_status": status}, durable)
        assert json.loads(path.read_bytes()) == {"exit_status": status}
    assert path.stat().st_mode & 0o777 == 0o600
    exitrecord.remove(str(path))
    exitrecord.remove(str(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("durable", [False, True])
def test_sec_74_a_kill_before_the_rename_leaves_the_old_record(
    tmp_path: Path, durable: bool
) -> None:
    path = tmp_path / "c.json"
    exitrecord.write(str(path), {"exit_status": 1}, True)
    code = write(path, 2, durable, [], FAULT="shim.exit-record-written:abort")
    assert code == -signal.SIGKILL
    assert json.loads(path.read_bytes()) == {"exit_status": 1}
    # What the killed one left beside it is no obstacle.
    assert write(path, 3, durable, []) == 0
    assert json.loads(path.read_bytes()) == {"exit_status": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename", "close"])
def test_sec_74_a_kill_in_any_system_call_leaves_one_or_the_other(
    tmp_path: Path, call: str
) -> None:
    """strace ends the process on its way into the call, for each call on the record's files."""
    path = tmp_path / "c.json"
    for number in range(1, 4):
        exitrecord.write(str(path), {"exit_status": 1}, True)
        inject = f"{call}:signal=KILL:when={number}"
        prefix = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-P", f"{path}.tmp"]
        code = write(path, 2, True, [*prefix, "-e", f"inject={inject}"])
        assert json.loads(path.read_bytes())["exit_status"] in ((2,) if code == 0 else (1, 2))
        if code == 0:
            return


@pytest.mark.parametrize("fault", ["write:error=ENOSPC", "fsync:error=EIO", "rename:error=EROFS"])
def test_a_failing_disk_raises_and_leaves_the_old_record_alone(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "c.json"
    exitrecord.write(str(path), {"exit_status": 1}, True)
    prefix = ["strace", "-qq", "-o", "/dev/null", "-P", str(path), "-P", f"{path}.tmp"]
    assert write(path, 2, True, [*prefix, "-e", f"inject={fault}"]) == 1
    assert json.loads(path.read_bytes()) == {"exit_status": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.root
def test_a_disk_that_takes_a_part_leaves_the_old_record_alone(tiny_disk: Path) -> None:
    path = tiny_disk / "c.json"
    exitrecord.write(str(path), {"exit_status": 1}, False)
    with pytest.raises(OSError, match="No space left"):
        exitrecord.write(str(path), {"text": "x" * 300_000}, False)
    assert json.loads(path.read_bytes()) == {"exit_status": 1}
    assert [entry.name for entry in tiny_disk.iterdir()] == ["c.json"]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "c.json.tmp").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        exitrecord.write(str(tmp_path / "c.json"), {"exit_status": 1}, False)
    assert (tmp_path / "victim").read_text() == "mine"
