"""Job `import`: an image archive, from its bytes to checked blobs in the ingest directory.

    {job: "import", limits: {max_bytes, max_entries}} + [archive: file or pipe, ingest directory]
    → {blobs: count, size_bytes, entries, index: bool, manifest: bool}

Reads an OCI image layout (image-spec, image-layout.md) or what `docker save` writes, as a tar,
plain, gzip or zstd. Nothing in it is trusted: a blob is kept under the digest of its bytes, and a
name that states a digest must be right. In the ingest directory, each made new and synced:

    blob-<n>         one blob
    index.json  manifest.json       the documents that say what the blobs are
    blobs.msgpack    {blobs: [{digest, size_bytes, file}], names: {path in the archive: digest}}
"""

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

import msgpack

from lighter.proto.errors import DataLoss, InvalidArgument, LighterError
from lighter.shim.worker import lockin, tarstream
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.channel import Channel
from lighter.shim.worker.failure import show, typed
from lighter.shim.worker.inflate import Source
from lighter.shim.worker.tarstream import Entry, TarReader

MAX_ENTRIES = 100_000
MAX_DOCUMENT = 20 << 20
DOCUMENTS = ("index.json", "manifest.json")
LIST_FILE = "blobs.msgpack"

# What an archive may hold besides, and nobody needs: the layout's version, docker's tag table.
_IGNORED = ("oci-layout", "repositories")
_BLOB = re.compile(r"blobs/(?P<algorithm>[a-z0-9]+)/(?P<hex>[a-f0-9]+)", re.ASCII)
_SAVED_CONFIG = re.compile(r"(?P<hex>[a-f0-9]{64})\.json", re.ASCII)
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Importer:
    """Takes the entries of one archive; `blobs` by digest and `names` grow with them."""

    __slots__ = ("_budget", "_dir_fd", "_tar", "blobs", "documents", "names")

    def __init__(self, tar: TarReader, dir_fd: int, budget: Budget) -> None:
        self._tar = tar
        self._dir_fd = dir_fd
        self._budget = budget
        self.blobs: dict[str, tuple[int, str]] = {}  # digest -> (size, file)
        self.names: dict[str, str] = {}
        self.documents: set[str] = set()

    def take(self, entry: Entry) -> None:
        """Keep what `entry` brings. Raises a typed error that names it."""
        try:
            self._take(entry)
        except OSError as err:
            raise typed(err, f"import {show(entry.name)}") from err
        except LighterError as err:
            raise type(err)(f"import {show(entry.name)}: {err.message}") from err

    def _take(self, entry: Entry) -> None:
        name = _name(entry.name)
        if entry.kind == tarstream.DIRECTORY:
            return
        if entry.kind == tarstream.SYMLINK:
            self._alias(name, entry)
            return
        if entry.kind != tarstream.REGULAR:
            raise InvalidArgument("only regular files are accepted")
        if not name or name in self.names or name in self.documents:
            raise InvalidArgument("the archive holds it twice" if name else "it has no name")
        if name.endswith((".json", "/json")) and entry.size > MAX_DOCUMENT:
            raise InvalidArgument(f"it has {entry.size} bytes, at most {MAX_DOCUMENT} are allowed")
        if name in DOCUMENTS:
            self._write(name, entry)
            self.documents.add(name)
        elif name not in _IGNORED:
            self._blob(name, entry)

    def _alias(self, name: str, entry: Entry) -> None:
        """A layer that the archive holds already, as a link to that one's file.

        Older docker links one layer.tar to another, skopeo links each to <hex of the layer>.tar.
        """
        target = _name(os.path.normpath(os.path.join(os.path.dirname(entry.name), entry.linkname)))
        if (
            entry.linkname.startswith(b"/")
            or not (name.endswith("/layer.tar") and target.endswith(".tar"))
            or target not in self.names
            or name in self.names
        ):
            raise InvalidArgument(f"it is a link to {show(entry.linkname)}")
        self.names[name] = self.names[target]

    def _blob(self, name: str, entry: Entry) -> None:
        algorithm, stated = _stated_digest(name)
        file = f"blob-{len(self.names)}"
        digest = f"{algorithm}:{self._write(file, entry, algorithm)}"
        if stated and digest != f"{algorithm}:{stated}":
            raise DataLoss(f"its content is {digest}")
        self.names[name] = digest
        if digest in self.blobs:
            os.unlink(file, dir_fd=self._dir_fd)
        else:
            self.blobs[digest] = (entry.size, file)

    def _write(self, file: str, entry: Entry, algorithm: str = "sha256") -> str:
        """Write the entry's content as a new file, synced; returns the hex of its digest."""
        if entry.pieces is not None:
            raise InvalidArgument("a blob is no sparse file")
        self._budget.file(entry.size)
        return _write_new(self._dir_fd, file, self._tar.content(), algorithm)

    def write_list(self) -> None:
        """Leave the list of blobs beside them, and make all names last. Raises a typed error."""
        blobs = [
            {"digest": digest, "size_bytes": size, "file": file}
            for digest, (size, file) in self.blobs.items()
        ]
        packed = memoryview(msgpack.packb({"blobs": blobs, "names": self.names}))
        try:
            self._budget.file(len(packed))
            _write_new(self._dir_fd, LIST_FILE, iter((packed,)), "sha256")
            os.fsync(self._dir_fd)
        except OSError as err:
            raise typed(err, f"import archive: write {LIST_FILE}") from err


def _write_new(dir_fd: int, file: str, pieces: Iterator[memoryview], algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    fd = os.open(file, _CREATE, 0o600, dir_fd=dir_fd)
    try:
        for piece in pieces:
            digest.update(piece)
            written = os.write(fd, piece)
            while written < len(piece):
                written += os.write(fd, piece[written:])
        os.fsync(fd)
    finally:
        os.close(fd)
    return digest.hexdigest()


def _name(raw: bytes) -> str:
    """An entry's name, which is only compared, never opened. Raises InvalidArgument."""
    if raw.startswith(b"/") or b".." in raw.split(b"/"):
        raise InvalidArgument("its name leads out of the archive")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise InvalidArgument("its name is not UTF-8") from err
    return "/".join(part for part in text.split("/") if part not in ("", "."))


def _stated_digest(name: str) -> tuple[str, str]:
    """(algorithm, hex) as the name of a blob states them; hex is "" where it states none."""
    if name.startswith("blobs/"):
        blob = _BLOB.fullmatch(name)
        if blob is None or len(blob["hex"]) != _HEX_LENGTH.get(blob["algorithm"]):
            raise InvalidArgument("its name is not a digest")
        return blob["algorithm"], blob["hex"]
    config = _SAVED_CONFIG.fullmatch(name)
    return "sha256", config["hex"] if config else ""


def run(job: dict[str, Any], fds: list[int], channel: Channel) -> dict[str, Any]:
    """Do the job; see the module's head. Raises typed errors."""
    if len(fds) != 2:
        raise InvalidArgument(f"import archive: expected two descriptors, got {len(fds)}")
    source = Source(fds[0], channel)
    source.look()
    dir_fd = _enter(fds, channel)
    limits = job.get("limits") or {}
    budget = Budget(dir_fd, limits.get("max_bytes"))
    stream = ByteStream(iter(source))
    tar = TarReader(stream, limits.get("max_entries") or MAX_ENTRIES)
    importer = Importer(tar, dir_fd, budget)
    for entry in tar:
        importer.take(entry)
        channel.tick(done_bytes=source.in_bytes, entries=tar.entries)
    stream.drain()
    if not importer.documents:
        raise InvalidArgument("import archive: it has neither index.json nor manifest.json")
    importer.write_list()
    return {
        "blobs": len(importer.blobs),
        "size_bytes": sum(size for size, _ in importer.blobs.values()),
        "entries": tar.entries,
        "index": "index.json" in importer.documents,
        "manifest": "manifest.json" in importer.documents,
    }


def _enter(fds: list[int], channel: Channel) -> int:
    """Lock in; returns a descriptor of the ingest directory as it is reached from inside."""
    archive_fd, outer_fd = fds
    lockin.close_all_but([channel.fileno(), archive_fd, outer_fd])
    lockin.enter([lockin.Bind(lockin.path_of(outer_fd), "ingest")], ())
    inner_fd = os.open("/ingest", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not lockin.same_file(outer_fd, "/ingest"):
        raise InvalidArgument("import archive: the ingest directory was moved")
    os.close(outer_fd)  # it belongs to the host's tree: ".." of it is not locked
    return inner_fd
