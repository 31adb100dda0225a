"""A small real OCI image archive, made from programs of the host: no network, no registry.

    python tests/images.py [--gzip]        makes it when needed and prints its path

One layer: the static busybox with a link per applet, /etc/passwd and /etc/group with a normal user
1000, an empty /etc/hosts and resolv.conf to bind over, /tmp with mode 1777. The archive is an OCI
image layout in a tar (image-spec, image-layout.md), the same bytes for the same busybox; it is
kept under .cache by the hash of what it is made of. Without a static busybox (CentOS) the layer
holds the host's sh and coreutils with their libraries.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REFERENCE = "docker.io/library/busybox:test"
_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "images"
_EPOCH = "1970-01-01T00:00:00Z"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n",
    "etc/hosts": "",
    "etc/resolv.conf": "",
}
# (path, mode, owner)
_DIRECTORIES = [
    *((name, 0o755, 0) for name in ("bin", "dev", "etc", "home", "lib", "lib64", "proc", "run")),
    *((name, 0o755, 0) for name in ("sbin", "sys", "usr", "usr/bin", "var")),
    ("home/user", 0o755, 1000),
    ("root", 0o700, 0),
    ("tmp", 0o1777, 0),
]
_COREUTILS = (
    "sh bash cat dd echo env false head id ls mkdir rm seq sleep stat tail touch true wc yes"
)


def busybox_archive(*, compressed: bool = False, cache_dir: Path = _CACHE) -> Path:
    """The archive's path; with `compressed`, its layer is gzip and so is the whole archive."""
    programs = dict(_programs())
    key = hashlib.sha256(Path(__file__).read_bytes())
    for path, source in sorted(programs.items()):
        key.update(path.encode() + b"\0" + (source.encode() if isinstance(source, str) else source))
    suffix = ".tar.gz" if compressed else ".tar"
    archive = cache_dir / f"busybox-{key.hexdigest()[:16]}{suffix}"
    if not archive.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        blob = _archive(_layer(programs), compressed)
        temporary = archive.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(gzip.compress(blob, 6, mtime=0) if compressed else blob)
        temporary.rename(archive)
    return archive


def _programs() -> Iterator[tuple[str, bytes | str]]:
    """Image path -> content, or the target of a symbolic link."""
    busybox = shutil.which("busybox")
    if busybox and _is_static(busybox):
        yield "bin/busybox", Path(busybox).read_bytes()
        listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
        for applet in listed.stdout.split():
            if applet != "busybox":
                yield f"bin/{applet}", "busybox"
        return
    for name in _COREUTILS.split():
        program = shutil.which(name)
        if program is None:
            raise SystemExit(f"make image: {name}: not found on this host")
        yield f"bin/{name}", Path(program).read_bytes()
        for library in _libraries(program):
            yield library.lstrip("/"), Path(library).read_bytes()


def _is_static(program: str) -> bool:
    return subprocess.run(["ldd", program], capture_output=True, check=False).returncode != 0


def _libraries(program: str) -> list[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    return [word for word in listed.stdout.split() if word.startswith("/")]


def _layer(programs: dict[str, bytes | str]) -> bytes:
    """The layer's tar, in the fixed order and with the fixed times that make it reproducible."""
    files: dict[str, bytes | str] = {**programs}
    files.update({name: text.encode() for name, text in _TEXTS.items()})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, mode, owner in _DIRECTORIES:
            tar.addfile(_entry(path, tarfile.DIRTYPE, mode, owner))
        for path, content in sorted(files.items()):
            if isinstance(content, str):
                entry = _entry(path, tarfile.SYMTYPE, 0o777)
                entry.linkname = content
                tar.addfile(entry)
            else:
                entry = _entry(path, tarfile.REGTYPE, 0o644 if path.startswith("etc/") else 0o755)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _entry(path: str, kind: bytes, mode: int, owner: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.uid, entry.gid = kind, mode, owner, owner
    return entry


def _archive(layer: bytes, compressed: bool) -> bytes:
    """An OCI image layout with the one image, as a tar."""
    blobs: dict[str, bytes] = {}
    stored = gzip.compress(layer, 6, mtime=0) if compressed else layer
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": _EPOCH,
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin:/sbin:/usr/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": _EPOCH, "created_by": "tests/images.py"}],
    }
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _add(blobs, "application/vnd.oci.image.config.v1+json", _json(config)),
        "layers": [_add(blobs, _LAYER + ("+gzip" if compressed else ""), stored)],
    }
    described = _add(blobs, media_type, _json(manifest))
    # containerd reads the whole name from its own annotation, others the tag from OCI's.
    described["annotations"] = {
        "io.containerd.image.name": REFERENCE,
        "org.opencontainers.image.ref.name": REFERENCE.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "manifests": [described]}
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        **{f"blobs/sha256/{name}": blob for name, blob in sorted(blobs.items())},
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in ("blobs", "blobs/sha256"):
            tar.addfile(_entry(path, tarfile.DIRTYPE, 0o755))
        for path, content in files.items():
            entry = _entry(path, tarfile.REGTYPE, 0o644)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _add(blobs: dict[str, bytes], media_type: str, content: bytes) -> dict[str, Any]:
    """Store a blob; returns its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="make the test image")
    parser.add_argument("--gzip", action="store_true")
    sys.stdout.write(f"{busybox_archive(compressed=parser.parse_args().gzip)}\n")


if __name__ == "__main__":
    main()
