"""IMG: tar and image archives made byte by byte, able to say what no library would write.

Every field of a header can be overridden with raw bytes; sizes need not match contents. Nothing
here checks anything: the tests do.
"""

import gzip
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

BLOCK = 512
END = bytes(2 * BLOCK)

FILE, HARDLINK, SYMLINK, CHAR, BLOCK_DEV, DIR, FIFO = (b"%d" % kind for kind in range(7))
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_FIELDS = (
    *("name", "mode", "uid", "gid", "size", "mtime", "checksum", "kind", "linkname", "magic"),
    *("uname", "gname", "major", "minor", "prefix"),
)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """GNU's binary number, negative ones too."""
    raw = bytearray((value & ((1 << (8 * width)) - 1)).to_bytes(width, "big"))
    raw[0] |= 0x80
    return bytes(raw)


def header(name: bytes, kind: bytes = FILE, **raw: bytes) -> bytes:
    """A ustar header with a right checksum; `raw` overrides fields by name, checksum included."""
    fields = {
        "name": name,
        "mode": octal(0o755 if kind == DIR else 0o644, 8),
        "uid": octal(0, 8),
        "gid": octal(0, 8),
        "size": octal(0, 12),
        "mtime": octal(1_700_000_000, 12),
        "checksum": b" " * 8,
        "kind": kind,
        "linkname": b"",
        "magic": b"ustar\x0000",
        "uname": b"",
        "gname": b"",
        "major": octal(0, 8),
        "minor": octal(0, 8),
        "prefix": b"",
        **raw,
    }
    if "checksum" not in raw:
        fields["checksum"] = b"%06o\0 " % sum(_HEADER.pack(*(fields[key] for key in _FIELDS)))
    return _HEADER.pack(*(fields[key] for key in _FIELDS))


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def special(kind: bytes, body: bytes) -> bytes:
    """An extended header of one of the kinds x, g, L, K."""
    return header(b"././@special", kind, size=octal(len(body), 12)) + padded(body)


def pax(records: Mapping[str | bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b""
    for key, value in records.items():
        raw = b" " + (key.encode() if isinstance(key, str) else key) + b"=" + value + b"\n"
        size = len(raw)
        while len(b"%d" % size) + len(raw) != size:
            size = len(b"%d" % size) + len(raw)
        body += b"%d" % size + raw
    return special(kind, body)


def entry(
    name: bytes | str,
    kind: bytes = FILE,
    content: bytes = b"",
    link: bytes | str = b"",
    *,
    mode: int | None = None,
    uid: int = 0,
    xattrs: Mapping[str, bytes] | None = None,
    **raw: bytes,
) -> bytes:
    """A whole entry; long names and links and attributes go into a PAX header before it."""
    name = name.encode() if isinstance(name, str) else name
    link = link.encode() if isinstance(link, str) else link
    records: dict[str | bytes, bytes] = {
        f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()
    }
    if len(name) > 100:
        records["path"] = name
    if len(link) > 100:
        records["linkpath"] = link
    if mode is not None:
        raw.setdefault("mode", octal(mode, 8))
    raw.setdefault("size", octal(len(content), 12))
    before = pax(records) if records else b""
    head = header(name[:100], kind, uid=octal(uid, 8), linkname=link[:100], **raw)
    return before + head + padded(content)


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + END


def diff_id(layer: bytes) -> str:
    return "sha256:" + hashlib.sha256(layer).hexdigest()


def oci_files(layer: bytes, *, compressed: bool = False) -> dict[str, bytes]:
    """The files of an OCI layout with one image of one layer, to be changed and packed."""
    stored = gzip.compress(layer, mtime=0) if compressed else layer
    config = _json({"rootfs": {"type": "layers", "diff_ids": [diff_id(layer)]}, "os": "linux"})
    manifest = _json({"schemaVersion": 2, "config": _of(config), "layers": [_of(stored)]})
    return {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [_of(manifest)]}),
        **{f"blobs/sha256/{_hex(blob)}": blob for blob in (config, manifest, stored)},
    }


def pack(files: Mapping[str, bytes], *more: bytes) -> bytes:
    """The files as a tar, then raw entries."""
    return archive(*(entry(name, FILE, content) for name, content in files.items()), *more)


def _of(blob: bytes) -> dict[str, Any]:
    return {"digest": f"sha256:{_hex(blob)}", "size": len(blob)}


def _hex(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()
