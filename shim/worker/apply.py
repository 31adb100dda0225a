"""Job `apply`: one layer, from its compressed bytes to files, in one pass and locked in.

    {job: "apply", media_type, diff_id | nil, digest | nil, target: dir, whiteouts: "overlay" |
     "plain", lowers: [dir, nearest first], mounts: [[type, source, [option]]],
     limits: {max_bytes, max_entries, devices}, sync: bool,
     patience_s: how long its bytes may stay away | nil}
    + [the layer's bytes: file or pipe, eventfd that tells when the lowers are whole (or none)]
    → {diff_id, digest | nil, size_bytes, entries, compressed_bytes, plain_bytes}

With mounts the target is what they give together, for this process alone ("plain" has no other
whiteouts to write). Names are taken as containerd takes them: "a/../../x" is "x", nothing leads out
of the target. On an error it holds whatever was written until then, for the caller to delete.
"""

import os
import stat
from typing import Any, Protocol

from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    PermissionDenied,
)
from lighter.shim import linux
from lighter.shim.worker import lockin, syscalls, tarstream
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.compression import may_be_compressed
from lighter.shim.worker.failure import show, typed
from lighter.shim.worker.inflate import Source
from lighter.shim.worker.metadata import LateTimes, clamp_ns, dress, set_link_xattrs
from lighter.shim.worker.overlay import Overlay
from lighter.shim.worker.plain import Plain
from lighter.shim.worker.remove import remove_tree
from lighter.shim.worker.sparse import Pieces
from lighter.shim.worker.tarstream import Entry, TarReader
from lighter.shim.worker.tree import Directory, Tree

WHITEOUT = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
_AUFS_PRIVATE = b".wh..wh."
# A policy that does not know another host's label refuses it, and files get their own anyhow.
_LABEL = b"security.selinux"

# 12 and 20 bits: linux/kdev_t.h. A wider number would be cut to another device (SEC-12).
_MAX_MAJOR = (1 << 12) - 1
_MAX_MINOR = (1 << 20) - 1

_PLACE = "/sys"  # a directory that every host has, and that is no source of a mount

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPABILITIES = (
    syscalls.CAP_CHOWN,
    syscalls.CAP_DAC_OVERRIDE,
    syscalls.CAP_FOWNER,
    syscalls.CAP_FSETID,
    syscalls.CAP_MKNOD,
    syscalls.CAP_SETFCAP,
)


class Rules(Protocol):
    """What an overlay's upper directory and a whole tree do differently."""

    tree: Tree

    def hide_below(self, directory: Directory) -> None: ...
    def described(self, directory: Directory, *, fresh: bool) -> None: ...
    def whiteout(self, parent_path: bytes, name: bytes) -> None: ...
    def opaque(self, path: bytes) -> None: ...
    def made(self, path: bytes) -> None: ...
    def link_source(self, path: bytes, name: bytes) -> Directory: ...
    def finish(self) -> None: ...


class Applier:
    """Writes entries into a tree; an OSError from anywhere within gets the entry's name."""

    __slots__ = ("_budget", "_devices", "_rules", "_tar", "_times", "_tree")

    def __init__(
        self, tar: TarReader, rules: Rules, times: LateTimes, budget: Budget, *, devices: bool
    ) -> None:
        self._tar = tar
        self._rules = rules
        self._tree = rules.tree
        self._times = times
        self._budget = budget
        self._devices = devices

    def apply(self, entry: Entry) -> None:
        """Make what `entry` describes. Raises a typed error that names it."""
        try:
            self._budget.name()
            self._apply(entry)
        except OSError as err:
            raise typed(err, f"unpack {show(entry.name)}") from err
        except LighterError as err:
            raise type(err)(f"unpack {show(entry.name)}: {err.message}") from err

    def finish(self) -> None:
        """Directory times, and what the rules have left. Raises a typed error."""
        try:
            self._rules.finish()
            self._times.put_on(self._tree)
        except OSError as err:
            raise typed(err, "unpack: finish directories") from err
        except LighterError as err:
            raise type(err)(f"unpack: finish directories: {err.message}") from err

    def _apply(self, entry: Entry) -> None:
        entry.xattrs.pop(_LABEL, None)
        path = clean(entry.name)
        parent_path, _, name = path.rpartition(b"/")
        if name.startswith(WHITEOUT):
            self._whiteout(parent_path, name)
        elif path.startswith(_AUFS_PRIVATE):
            pass  # aufs' own files, in a directory that only aufs reads
        elif not name:
            self._root(entry)
        else:
            self._make(parent_path, name, entry)

    def _make(self, parent_path: bytes, name: bytes, entry: Entry) -> None:
        parent = self._tree.make(parent_path)
        if entry.kind == tarstream.REGULAR:
            self._file(parent, name, entry)
        elif entry.kind == tarstream.DIRECTORY:
            self._directory(parent, name, entry)
        elif entry.kind == tarstream.HARDLINK:
            self._hardlink(parent_path, name, entry)
        elif entry.kind == tarstream.SYMLINK:
            self._symlink(parent, name, entry)
        else:
            self._special(parent, name, entry)

    def _whiteout(self, parent_path: bytes, name: bytes) -> None:
        if name == OPAQUE_MARKER:
            self._rules.opaque(parent_path)
        elif not name.startswith(_AUFS_PRIVATE):
            hidden = name[len(WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise InvalidArgument("the whiteout names no file")
            self._rules.whiteout(parent_path, hidden)

    def _root(self, entry: Entry) -> None:
        if entry.kind != tarstream.DIRECTORY:
            raise InvalidArgument("only a directory can be the root")
        self._dress_directory(self._tree.root, entry)

    def _file(self, parent: Directory, name: bytes, entry: Entry) -> None:
        self._budget.file(entry.size if entry.pieces is None else stored_bytes(entry.pieces))
        self._budget.xattrs(entry.xattrs)
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        try:
            if entry.pieces is None:
                for chunk in self._tar.content():
                    written = os.write(fd, chunk)
                    while written < len(chunk):
                        written += os.write(fd, chunk[written:])
            else:
                self._sparse(fd, entry.pieces, entry.size)
            dress(fd, entry.uid, entry.gid, entry.mode, entry.xattrs)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)
        self._rules.made(parent.child(name))

    def _sparse(self, fd: int, pieces: Pieces, size: int) -> None:
        """Write each piece at its place; the holes stay holes."""
        os.ftruncate(fd, size)
        places = iter(pieces)
        offset = left = 0
        for chunk in self._tar.content():
            while chunk:
                while not left:
                    offset, left = next(places)  # they add up to the content (sparse.check)
                written = os.pwrite(fd, chunk[:left], offset)
                chunk, offset, left = chunk[written:], offset + written, left - written

    def _directory(self, parent: Directory, name: bytes, entry: Entry) -> None:
        path = parent.child(name)
        replaced, fresh = False, True
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                fresh = False
            else:
                self._clear(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent.fd)
                replaced = True
        self._budget.directory()
        directory = self._tree.enter(parent, name)
        if replaced:
            self._rules.hide_below(directory)
        self._rules.described(directory, fresh=fresh)
        self._dress_directory(directory, entry)
        self._rules.made(path)

    def _dress_directory(self, directory: Directory, entry: Entry) -> None:
        self._budget.xattrs(entry.xattrs)
        dress(directory.fd, entry.uid, entry.gid, entry.mode, entry.xattrs)
        self._times.set(directory, *_times(entry))

    def _hardlink(self, parent_path: bytes, name: bytes, entry: Entry) -> None:
        target_path, _, target = clean(entry.linkname).rpartition(b"/")
        if not target:
            raise InvalidArgument("a hard link cannot lead to the root")
        source = self._rules.link_source(target_path, target)
        source_path = source.child(target)
        # The next look-up may close what this one opened.
        source_fd = os.dup(source.fd)
        try:
            parent = self._tree.make(parent_path)
            if source_path == parent.child(name):
                raise InvalidArgument("the hard link leads to itself")
            for last in (False, True):
                try:
                    os.link(
                        target,
                        name,
                        src_dir_fd=source_fd,
                        dst_dir_fd=parent.fd,
                        follow_symlinks=False,
                    )
                    break
                except FileExistsError:
                    if last:
                        raise
                    self._clear(parent, name)
        finally:
            os.close(source_fd)
        self._rules.made(parent.child(name))

    def _symlink(self, parent: Directory, name: bytes, entry: Entry) -> None:
        if not entry.linkname:
            raise InvalidArgument("the link leads nowhere")
        self._budget.symlink(entry.linkname)
        try:
            os.symlink(entry.linkname, name, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.symlink(entry.linkname, name, dir_fd=parent.fd)
        self._dress_unopened(parent, name, entry)

    def _special(self, parent: Directory, name: bytes, entry: Entry) -> None:
        mode, device = entry.mode, 0
        if entry.kind == tarstream.FIFO:
            mode |= stat.S_IFIFO
        else:
            if not self._devices:
                raise PermissionDenied("device files are not allowed")
            if not (0 <= entry.major <= _MAX_MAJOR and 0 <= entry.minor <= _MAX_MINOR):
                raise InvalidArgument(f"device number {entry.major}:{entry.minor} is out of range")
            mode |= stat.S_IFCHR if entry.kind == tarstream.CHAR_DEVICE else stat.S_IFBLK
            device = os.makedev(entry.major, entry.minor)
        # With umask 0 the mode is complete at once.
        try:
            os.mknod(name, mode, device, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.mknod(name, mode, device, dir_fd=parent.fd)
        self._dress_unopened(parent, name, entry)
        if entry.mode & (stat.S_ISUID | stat.S_ISGID):
            # chown(2) took these bits away. The name was made just now, in a tree that nobody
            # else writes (extract.py keeps them off where somebody does), so it is no link that
            # fchmodat(2) would follow.
            os.chmod(name, entry.mode, dir_fd=parent.fd)

    def _dress_unopened(self, parent: Directory, name: bytes, entry: Entry) -> None:
        self._budget.xattrs(entry.xattrs)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        set_link_xattrs(parent, name, entry.xattrs)
        os.utime(name, ns=_times(entry), dir_fd=parent.fd, follow_symlinks=False)
        self._rules.made(parent.child(name))

    def _clear(self, parent: Directory, name: bytes) -> None:
        """Remove what an entry replaces; nothing remembered may lead to it any more (SEC-05)."""
        remains = remove_tree(parent.fd, name)
        self._tree.forget(parent.child(name))
        if remains.left:
            path, cause = remains.left[0]
            raise PermissionDenied(f"replace {path!a}: {cause}")


def stored_bytes(pieces: Pieces) -> int:
    """What a sparse file takes on a disk: each piece in whole blocks."""
    return sum(
        ((offset + length + 4095) // 4096 - offset // 4096) * 4096 for offset, length in pieces
    )


def clean(name: bytes) -> bytes:
    """A written name as a path below the root: no ".", no "..", no empty part; b"" is the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


def _times(entry: Entry) -> tuple[int, int]:
    """(atime, mtime): archives seldom say the first, then it is the second."""
    mtime_ns = clamp_ns(entry.mtime_ns)
    return max(clamp_ns(entry.atime_ns), mtime_ns), mtime_ns


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) not in (1, 2):
        raise InvalidArgument(f"unpack layer: expected one or two descriptors, got {len(fds)}")
    compressed = may_be_compressed(job.get("media_type", ""))
    mode = job.get("whiteouts")
    if mode not in ("overlay", "plain"):
        raise InvalidArgument(f"unpack layer: whiteouts {mode!r} is neither overlay nor plain")
    if not isinstance(job.get("target"), str):
        raise InvalidArgument("unpack layer: the job names no target directory")
    source = Source(
        fds[0],
        channel,
        hash_input=bool(job.get("digest")),
        compressed=compressed,
        patience_s=job.get("patience_s"),
    )
    source.look()
    target, lowers = _enter(job, mode, fds, channel)
    limits = job.get("limits") or {}
    stream = ByteStream(iter(source))
    tar = TarReader(stream, limits.get("max_entries") or tarstream.DEFAULT_MAX_ENTRIES)
    budget = Budget(target, limits.get("max_bytes"))
    times = LateTimes()

    def await_lowers() -> None:
        if len(fds) == 2:
            channel.wait_readable(fds[1])

    rules: Rules = (
        Overlay(target, lowers, times, budget, await_lowers)
        if mode == "overlay"
        else Plain(target, budget)
    )
    applier = Applier(tar, rules, times, budget, devices=limits.get("devices", True))
    for entry in tar:
        applier.apply(entry)
        channel.tick(done_bytes=source.in_bytes, entries=tar.entries)
    stream.drain()
    applier.finish()
    _compare("diff id", source.diff_id, job.get("diff_id"))
    _compare("digest", source.digest, job.get("digest"))
    if job.get("sync"):
        syscalls.syncfs(target)
    return {
        "diff_id": source.diff_id,
        "digest": source.digest,
        "size_bytes": budget.used_bytes,
        "entries": tar.entries,
        "compressed_bytes": source.in_bytes,
        "plain_bytes": source.out_bytes,
    }


def _enter(
    job: dict[str, Any], mode: str, fds: list[int], channel: Channel
) -> tuple[int, list[int]]:
    """Lock in; returns descriptors of the target and of the lower layers."""
    lowers = job.get("lowers") or [] if mode == "overlay" else []
    target = job["target"]
    if mounts := job.get("mounts"):
        target = _PLACE
        lockin.private_mounts()
        try:
            linux.mount_all(mounts, target)
        except OSError as err:
            raise typed(err, "unpack layer: mount the snapshot") from err
    binds = [lockin.Bind(target, "target")]
    binds += [
        lockin.Bind(lower, f"lower/{number}", lockin.READ_ONLY)
        for number, lower in enumerate(lowers)
    ]
    lockin.close_all_but([channel.fileno(), *fds])
    # trusted.* attributes, of which an opaque directory is made, need CAP_SYS_ADMIN.
    extra = (syscalls.CAP_SYS_ADMIN,) if mode == "overlay" else ()
    lockin.enter(binds, (*_CAPABILITIES, *extra))
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return (
        os.open("/target", flags),
        [os.open(f"/lower/{number}", flags) for number in range(len(lowers))],
    )


def _compare(what: str, found: str | None, expected: str | None) -> None:
    if expected and found != expected:
        raise DataLoss(f"unpack layer: {what} is {found}, the image says {expected}")
