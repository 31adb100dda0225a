"""Images on their way: pull from a registry, import, export, with everything on a tmpfs.

The image is made of this host's own files, 450 MB of them taken at random (by a hash of their
names), with their directories: once as one gzip layer, once as eight, once as eight zstd layers.
The registry is Debian's docker-registry on loopback.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import zstandard
from measure import CommandFailed, Row, in_turn, run, seconds, titles, until
from peer import Peer
from peers import Lighter

TMPFS = "/dev/shm"
SIZE_BYTES = 450_000_000
SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")
KINDS = {"gzip-1": (1, "gzip"), "gzip-8": (8, "gzip"), "zstd-8": (8, "zstd")}
TIMES = 3
_LAYER = "application/vnd.oci.image.layer.v1.tar+"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def image_rows(peer_kinds: Sequence[type[Peer]]) -> Iterator[Row]:
    """Each row as soon as it is measured. Needs docker-registry and skopeo."""
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            raise CommandFailed(f"{program} is not installed: no image rows")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=TMPFS)))
        layouts = {kind: make_layout(work / kind, *made) for kind, made in KINDS.items()}
        host = stack.enter_context(registry(work / "registry"))
        for kind, layout in layouts.items():
            target = f"docker://{host}/{kind}:1"
            run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:1", target])
        peers = [stack.enter_context(kind(TMPFS)) for kind in peer_kinds]
        for kind in KINDS:
            reference = f"{host}/{kind}:1"
            yield transfer_row(f"pull of 450 MB, {kind}", peers, reference, 0.5, _pull)
        reference = f"{host}/gzip-1:1"
        archive = work / "archive.tar"
        export = Row("export of 450 MB", "s", bound=0.4)
        taken = Row("import of 450 MB, gzip-1", "s", bound=0.5)
        for peer in peers:
            _pull(peer, reference)
        for turn in range(TIMES + 1):
            for peer in in_turn(peers, turn):
                argv = peer.client("images", "export", str(archive), reference)
                spent = seconds(partial(run, argv))
                if turn:
                    export.add(peer.name, spent)
        yield export
        for turn in range(TIMES + 1):
            for peer in in_turn(peers, turn):
                _remove(peer, reference)
                argv = peer.client("images", "import", str(archive))
                spent = seconds(partial(run, argv))
                if turn:
                    taken.add(peer.name, spent)
        yield taken
        peak = Row("manager memory, peak over all image rows: RSS", "MiB", at_most=120)
        for peer in peers:
            assert peer.manager is not None
            peak.add(peer.name, _peak_kib(peer.manager.pid) / 1024)
        yield peak
        # After the others, since watching takes time. containerd unpacks in its own process.
        worker = Row("worker memory, peak over one more pull of each: RSS", "MiB")
        for peer in peers:
            if isinstance(peer, Lighter):
                references = [f"{host}/{kind}:1" for kind in KINDS]
                worker.add(peer.name, _workers_peak_kib(peer, references) / 1024)
        yield worker


def _workers_peak_kib(peer: Lighter, references: Sequence[str]) -> int:
    """The highest peak that any worker had while the images, of which the first is here, came."""
    peaks: dict[int, int] = {}
    title = f"lighter-worker --instance {peer.instance}"
    with ThreadPoolExecutor(1) as pool:
        _remove(peer, references[0])
        for reference in references:
            pulling = pool.submit(_pull, peer, reference)
            while not pulling.done():
                for pid, shown in titles().items():
                    if shown.startswith(title):
                        with contextlib.suppress(OSError, CommandFailed):  # it has ended
                            peaks[pid] = _peak_kib(pid)
                time.sleep(0.02)
            pulling.result()
            _remove(peer, reference)
    if not peaks:
        raise CommandFailed("no worker was seen in three pulls")
    return max(peaks.values())


def transfer_row(
    work: str, peers: Sequence[Peer], reference: str, bound: float, act: Callable[[Peer, str], None]
) -> Row:
    row = Row(work, "s", bound=bound)
    for turn in range(TIMES + 1):
        for peer in in_turn(peers, turn):
            spent = seconds(partial(act, peer, reference))
            _remove(peer, reference)
            if turn:
                row.add(peer.name, spent)
    return row


def _pull(peer: Peer, reference: str) -> None:
    run(peer.client("images", "pull", "--plain-http", reference))


def _remove(peer: Peer, reference: str) -> None:
    """The image and its content: the next pull finds nothing."""
    run(peer.client("images", "rm", "--sync", reference))


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise CommandFailed(f"process {pid} has no VmHWM")


@contextmanager
def registry(root: Path) -> Iterator[str]:
    """host:port of a running docker-registry that keeps its data in `root`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root.mkdir()
    (root / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(root / "config.yml")], stdout=log, stderr=log
        )
    try:
        until(partial(_listens, port), 20, "docker-registry answers")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def make_layout(directory: Path, layers: int, compression: str) -> Path:
    """An OCI image layout with one image, tag 1."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    described, diff_ids = [], []
    for files in _portions(layers):
        tar = _tar(files)
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        described.append(_add(blobs, _LAYER + compression, _compressed(tar, compression)))
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _add(blobs, "application/vnd.oci.image.config.v1+json", _json(config)),
        "layers": described,
    }
    entry = _add(blobs, _MANIFEST, _json(manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return directory


def _sample() -> list[tuple[Path, int]]:
    """Files and links of this host, SIZE_BYTES in all: as many small ones as it has among them."""
    found: list[tuple[Path, int]] = []
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            for path in (Path(folder, name) for name in names):
                info = path.lstat()
                if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    found.append((path, info.st_size))
    found.sort(key=lambda file: hashlib.sha256(bytes(file[0])).digest())
    total = 0
    for count, (_, size) in enumerate(found):
        total += size
        if total >= SIZE_BYTES:
            return sorted(found[: count + 1])
    return sorted(found)


def _portions(count: int) -> Iterator[list[Path]]:
    """The sample in `count` lists of about equal bytes."""
    found = _sample()
    total = sum(size for _, size in found)
    portion: list[Path] = []
    filled = 0
    for path, size in found:
        portion.append(path)
        filled += size
        if filled >= total / count:
            yield portion
            portion, filled = [], 0
    if portion:
        yield portion


def _tar(files: Sequence[Path]) -> bytes:
    """The files with the directories above them, as image builders write layers."""
    out = io.BytesIO()
    written = {Path("/")}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            above = [folder for folder in reversed(path.parents) if folder not in written]
            written.update(above)
            for each in (*above, path):
                tar.add(each, str(each).lstrip("/"), recursive=False)
    return out.getvalue()


def _compressed(data: bytes, compression: str) -> bytes:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
    return deflate.compress(data) + deflate.flush()


def _add(blobs: Path, media_type: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
