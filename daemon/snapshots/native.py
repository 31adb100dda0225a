"""Snapshots as whole copies: for file systems that overlayfs cannot stand on.

snapshots/native/<number>/fs is a complete tree. Where the file system shares blocks between
copies (XFS, Btrfs), `cp --reflink=auto` makes it do so.
"""

import asyncio

from lighter.daemon.snapshots.directories import DirectorySnapshotter
from lighter.daemon.snapshots.disk import make_directory, sync_file_system
from lighter.daemon.snapshots.rows import Row
from lighter.daemon.snapshots.types import ACTIVE, LayerTarget
from lighter.daemon.types import Mount
from lighter.proto.errors import Internal, ResourceExhausted

_CP = ("/bin/cp", "--archive", "--reflink=auto", "--no-target-directory")


class NativeSnapshotter(DirectorySnapshotter):
    """An active snapshot begins as a copy of its parent."""

    name = "native"

    async def _fill(self, path: str, parents: tuple[int, ...], kind: str) -> None:
        make_directory(path + "/fs", 0o755)
        if kind == ACTIVE and parents:
            await _copy(self.files(parents[0]), path + "/fs")
            await asyncio.to_thread(sync_file_system, path)

    def _mounts(self, key: str, row: Row, parents: tuple[int, ...]) -> tuple[Mount, ...]:
        if row.info.kind == ACTIVE:
            return (Mount("bind", self.files(row.number), ("rw", "rbind")),)
        source = self.files(parents[0] if parents else row.number)
        return (Mount("bind", source, ("ro", "rbind")),)

    def _target(self, row: Row, parents: tuple[int, ...]) -> LayerTarget:
        return LayerTarget(self.files(row.number), (), "plain")


async def _copy(source: str, target: str) -> None:
    """Copy a tree with owners, modes, times, links and extended attributes."""
    process = await asyncio.create_subprocess_exec(
        *_CP,
        source,
        target,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C"},
    )
    _, complaint = await process.communicate()
    if process.returncode:
        text = complaint.decode(errors="replace").strip().splitlines()
        cause = text[-1] if text else f"cp ended with {process.returncode}"
        kind = ResourceExhausted if "No space left" in cause or "quota" in cause else Internal
        raise kind(f"copy snapshot {source}: {cause}")
