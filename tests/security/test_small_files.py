"""SEC-74: a small file is the old or the new one, to the byte, whenever its writer is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

OLD, NEW = b"an old and longer content\n" * 400, b"new\n"
WRITE = """
import sys
from lighter.daemon import files
files.write_whole(sys.argv[1], b"new\\n", 0o600, durable=True)
"""
# In the order in which they are made: the file's own fsync, then that of its directory.
CALLS = (("write", 1), ("fchmod", 1), ("fsync", 1), ("rename", 1), ("fsync", 2))


def write_killed_at(syscall: str, number: int, path: Path) -> bool:
    """Write NEW over `path`; whether the writer died as its `number`-th such call was entered."""
    argv = [
        *("strace", "-qq", "-o", "/dev/null", "-f", "-e", f"trace={syscall}"),
        *("-e", f"inject={syscall}:signal=KILL:when={number}"),
        *(sys.executable, "-I", "-c", WRITE, str(path)),
    ]
    return subprocess.run(argv, capture_output=True).returncode != 0


@pytest.mark.parametrize("old", [OLD, None], ids=["replaced", "made"])
def test_sec74_kill_at_each_call_leaves_old_or_new(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "small"
    seen = []
    for syscall, number in CALLS:
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        assert write_killed_at(syscall, number, path), (syscall, number)
        seen.append(path.read_bytes() if path.exists() else None)
        assert seen[-1] in (old, NEW), (syscall, number)
    # The name changes hands at the rename and at no other call.
    assert seen[:3] == [old] * 3 and seen[4] == NEW
    assert not write_killed_at("rename", 2, path)
