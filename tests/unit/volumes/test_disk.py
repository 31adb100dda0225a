"""What a tree takes on the disk, whoever has filled it."""

import os
import tracemalloc
from pathlib import Path

from lighter.daemon.snapshots import disk

FILES = 3000


def test_measuring_takes_no_memory_for_files(tmp_path: Path) -> None:
    for number in range(FILES):
        (tmp_path / f"{number:0200}").touch()
    tracemalloc.start()
    try:
        usage = disk.measure(str(tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert usage.inodes == FILES + 1
    assert peak < 50 * FILES


def test_a_file_with_several_names_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    alone = disk.measure(str(tmp_path))
    os.link(tmp_path / "a", tmp_path / "inner/b")
    assert disk.measure(str(tmp_path)) == alone
    assert alone.inodes == 3
