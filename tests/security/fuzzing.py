"""Damaged input for everything that reads what others wrote: targets, a corpus, mutations.

    corpus/<target>/<name>     inputs, good ones and those that were once read wrongly

A target reads bytes and may raise LighterError, which is what callers of it expect. A mutation is
made of corpus and seed alone, so that a failure can be had again.
"""

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lighter.daemon import config, filters
from lighter.daemon.images import documents
from lighter.daemon.images.documents import INDEXES, MANIFESTS
from lighter.daemon.images.reference import Reference
from lighter.daemon.network import configs, plugin, result
from lighter.daemon.oci import plainyaml
from lighter.daemon.oci.config import read_image_config
from lighter.daemon.registry.access import Access
from lighter.daemon.registry.hosts import HOSTS_FILE, endpoints
from lighter.daemon.registry.settings import RegistrySettings
from lighter.proto import codec
from lighter.proto.errors import LighterError

CORPUS = Path(__file__).with_name("corpus")
MOST_BYTES = 1 << 16
DOMAIN = "registry.test"


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def wire(data: bytes) -> None:
    with suppress(codec.ProtocolError):
        codec.decode([data[:1], data[1:]])


def configuration(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        config.dump(config.load(file.name))


def reference(data: bytes) -> None:
    parsed = Reference.parse(_text(data))
    assert Reference.parse(str(parsed)) == parsed


def hosts(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, DOMAIN)
        place.mkdir()
        (place / HOSTS_FILE).write_bytes(data)
        endpoints(DOMAIN, Access(hosts_dir=directory), RegistrySettings())


def manifest(data: bytes) -> None:
    for kind in sorted(INDEXES | MANIFESTS):
        with suppress(LighterError):
            documents.parse(data, kind, "x")


def image_config(data: bytes) -> None:
    with suppress(LighterError):
        documents.diff_ids(documents.load(data, "x"), "x")
    read_image_config(data)


def cni_result(data: bytes) -> None:
    result.read(plugin._answer("x", 0, data, b""), "x")


def cni_config(data: bytes) -> None:
    configs.parse(data, "/x.conflist")


def filter_text(data: bytes) -> None:
    # Both front ends take nothing but UTF-8.
    filters.any_of([data.decode(errors="replace")])(lambda path: ".".join(path))


def yaml(data: bytes) -> None:
    plainyaml.parse(_text(data), "x")


TARGETS: dict[str, Callable[[bytes], object]] = {
    "wire": wire,
    "config": configuration,
    "reference": reference,
    "hosts": hosts,
    "manifest": manifest,
    "image-config": image_config,
    "cni-result": cni_result,
    "cni-config": cni_config,
    "filter": filter_text,
    "yaml": yaml,
}

TOKENS = [
    *(b"\0", b"\n", b"\r\n", b"\xff", b"\xed\xa0\x80", "\u202e".encode(), "é".encode()),
    *(b'"', b"'", b"\\", b"\\ud800", b"\\u0000", b"[", b"]", b"{", b"}", b":", b",", b"=", b"#"),
    *(b"null", b"true", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"-0.0", b"9" * 25, b"0x7f"),
    *(b"[" * 3000, b"{" * 300, b"9" * 5000, b"0x" + b"f" * 5000, b"a" * 300),
    *(b"/../", b"/" * 50, b"@", b"sha256:", b"%00", b"*"),
    *(b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xcf" + b"\xff" * 8),
]


def corpus(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def mutations(target: str, seeds: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """(seed, input) for each seed."""
    known = corpus(target)
    for seed in seeds:
        choose = random.Random(f"{target} {seed}")
        data = choose.choice(known)
        for _ in range(choose.randint(1, 5)):
            data = _mutated(data, known, choose)[:MOST_BYTES]
        yield seed, data


def _mutated(data: bytes, known: list[bytes], choose: random.Random) -> bytes:
    start, end = sorted(choose.randint(0, len(data)) for _ in range(2))
    near = min(end, start + choose.randint(0, 8))
    match choose.randrange(7):
        case 0:  # a bit
            if not data:
                return data
            place = min(start, len(data) - 1)
            flipped = data[place] ^ (1 << choose.randrange(8))
            return data[:place] + bytes([flipped]) + data[place + 1 :]
        case 1:
            return data[:start] + choose.randbytes(choose.randint(1, 8)) + data[start:]
        case 2:
            return data[:start] + data[near:]
        case 3:
            return data[:start] + data[start:end] * choose.randint(2, 4) + data[end:]
        case 4:
            other = choose.choice(known)
            return data[:start] + other[choose.randint(0, len(other)) :]
        case 5:
            return data[:start] + choose.choice(TOKENS) + data[near:]
        case _:
            return data[:end]


def fails(target: str, data: bytes) -> Exception | None:
    """What a target raises that its callers do not expect."""
    try:
        TARGETS[target](data)
    except LighterError:
        pass
    except Exception as error:
        return error
    return None


def keep(target: str, data: bytes) -> Path:
    """Put a failing input into the corpus, where every later run begins with it."""
    path = CORPUS / target / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path
