"""Snapshots as overlayfs layers (Documentation/filesystems/overlayfs.rst).

    snapshots/overlayfs/<number>/fs     the layer's own files: an upper, later a lower directory
    snapshots/overlayfs/<number>/work   overlayfs's work directory
    l/<number in base 36>               links to the above, made where the mount data needs them

mount(2) takes one page of data and cuts the rest without a word, so the data is held below 4000
bytes. Full paths fit about 88 lower directories at the usual root. Above that, the short links
are named instead (overlayfs follows them when it mounts, never later): about 165. Above that,
whoever mounts goes to the directory that the lower ones have in common and names them from there
(shim/linux.py, and containerd's clients do it by themselves): with the links this reaches the 500
layers that the kernel can stack, on every kernel and without its newer mount calls.
"""

import os
from collections.abc import Iterable

from lighter.daemon.errors import from_os
from lighter.daemon.events.log import EventLog
from lighter.daemon.metadata.db import Database
from lighter.daemon.snapshots.directories import DirectorySnapshotter
from lighter.daemon.snapshots.disk import make_directory
from lighter.daemon.snapshots.rows import Row
from lighter.daemon.snapshots.types import ACTIVE, LayerTarget, TreeRemover
from lighter.daemon.types import Mount
from lighter.proto.errors import FailedPrecondition

MAX_MOUNT_DATA = 4000
MAX_LOWERS = 500  # OVL_MAX_STACK in fs/overlayfs/super.c

_PROBE = "trusted.overlay.lighter"

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> str:
    """A short, lower-case spelling of a positive number."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _BASE36[digit] + digits
    return digits


class OverlaySnapshotter(DirectorySnapshotter):
    """`links_dir` holds the short links; by default `l` beside the snapshots directory."""

    name = "overlayfs"
    max_layers = MAX_LOWERS
    layers_apart = True

    def __init__(
        self,
        snapshots_dir: str,
        db: Database,
        events_log: EventLog,
        remove_tree: TreeRemover,
        links_dir: str = "",
    ) -> None:
        super().__init__(snapshots_dir, db, events_log, remove_tree)
        self._usable = False
        self._links_dir = links_dir or os.path.dirname(snapshots_dir) + "/l"
        # With the index on, a lower directory that was once mounted below another upper is
        # refused or misread; kernels without the option have no index.
        has_index = os.path.exists("/sys/module/overlay/parameters/index")
        self._always = ("index=off",) if has_index else ()
        try:
            os.makedirs(self._links_dir, 0o700, exist_ok=True)
            os.chmod(self._links_dir, 0o700)
        except OSError as err:
            raise from_os("make snapshot links directory", err) from err

    @property
    def unusable(self) -> str:
        if self._usable:
            return ""
        try:
            os.setxattr(self.dir, _PROBE, b"y")
            os.removexattr(self.dir, _PROBE)
        except OSError as err:
            return (
                f"the file system of {self.dir} does not keep trusted attributes "
                f"({err.strerror}), which deletions are recorded in"
            )
        self._usable = True
        return ""

    async def _fill(self, path: str, parents: tuple[int, ...], kind: str) -> None:
        if reason := self.unusable:
            raise FailedPrecondition(
                f"use {self.name}: {reason}; choose another directory with --root, or the "
                "snapshotter native"
            )
        make_directory(path + "/fs", 0o755)
        if kind != ACTIVE:
            return
        make_directory(path + "/work", 0o711)
        if parents:
            # The root of a mount takes its owner and mode from the upper directory.
            below = os.stat(self.files(parents[0]))
            os.chown(path + "/fs", below.st_uid, below.st_gid)
            os.chmod(path + "/fs", below.st_mode & 0o7777)

    def _check(self, key: str, number: int, parents: tuple[int, ...]) -> None:
        if parents:
            self._data(key, number, parents)

    def _data(self, key: str, number: int, lowers: tuple[int, ...]) -> tuple[str, ...]:
        """The options of a mount with these lowers, in the shortest form that is needed."""
        upper = (f"workdir={self.dir}/{number}/work", f"upperdir={self.files(number)}")
        forms = ((self.files, ""), (self._link, ""), (self._link, self._links_dir + "/"))
        for path_of, common in forms:
            options = (*self._always, *upper, "lowerdir=" + ":".join(map(path_of, lowers)))
            size = len(os.fsencode(",".join(options))) - len(lowers) * len(os.fsencode(common))
            if size <= MAX_MOUNT_DATA and len(lowers) <= MAX_LOWERS:
                if path_of == self._link:
                    self._make_links(lowers)
                return options
        raise FailedPrecondition(
            f"prepare snapshot {key}: {len(lowers)} layers take {size} bytes of mount data; "
            f"at most {MAX_MOUNT_DATA} bytes and {MAX_LOWERS} layers can be mounted"
        )

    def _mounts(self, key: str, row: Row, parents: tuple[int, ...]) -> tuple[Mount, ...]:
        if row.info.kind == ACTIVE:
            if not parents:
                return (Mount("bind", self.files(row.number), ("rw", "rbind")),)
            return (Mount("overlay", "overlay", self._data(key, row.number, parents)),)
        if len(parents) < 2:
            only = parents[0] if parents else row.number
            return (Mount("bind", self.files(only), ("ro", "rbind")),)
        options = self._data(key, row.number, parents)
        read_only = tuple(o for o in options if not o.startswith(("upperdir=", "workdir=")))
        return (Mount("overlay", "overlay", read_only),)

    def _target(self, row: Row, parents: tuple[int, ...]) -> LayerTarget:
        return LayerTarget(
            self.files(row.number), tuple(self.files(number) for number in parents), "overlay"
        )

    def _link(self, number: int) -> str:
        return f"{self._links_dir}/{base36(number)}"

    def _make_links(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                os.symlink(self.files(number), self._link(number))
            except FileExistsError:
                pass  # a number is never used twice, so it says the same
            except OSError as err:
                raise from_os(f"link snapshot directory {number}", err) from err

    def _forget(self, number: int) -> None:
        try:
            os.unlink(self._link(number))
        except FileNotFoundError:
            pass
