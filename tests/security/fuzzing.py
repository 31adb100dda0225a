"""Damaged input for everything that reads what others wrote: targets, a corpus, mutations.

    corpus/<target>/<name>     inputs, good ones and those that were once read wrongly

A target reads bytes and may raise LighterError, which is what callers of it expect. A mutation is
made of corpus and seed alone, so that a failure can be had again.
"""

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lighter.daemon import filters
from lighter.daemon.config import schema
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
from lighter.proto.errors import Internal, LighterError
from lighter.shim.worker.apply import Applier
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.bytestream import ByteStream
from lighter.shim.worker.metadata import LateTimes
from lighter.shim.worker.overlay import Overlay
from lighter.shim.worker.plain import Plain
from lighter.shim.worker.tarstream import TarReader

CORPUS = Path(__file__).with_name("corpus")
MOST_BYTES = 1 << 16
MOST_TREE_BYTES = 4 << 20
MOST_S = 2.0  # of processor time for one input
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
        schema.dump(schema.load(file.name))


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


def layer(data: bytes) -> None:
    """Read and applied by each set of rules; whatever happens, nothing is made beside the tree."""
    data = with_checksums(data)
    for rules_of in (Plain, Overlay):
        with tempfile.TemporaryDirectory() as directory:
            os.mkdir(f"{directory}/tree")
            tree_fd = os.open(f"{directory}/tree", os.O_RDONLY | os.O_DIRECTORY)
            try:
                _apply(data, rules_of, tree_fd)
            finally:
                os.close(tree_fd)
                assert os.listdir(directory) == ["tree"]


def _apply(data: bytes, rules_of: type[Plain] | type[Overlay], tree_fd: int) -> None:
    tar = TarReader(ByteStream(iter([data])), max_entries=1000)
    budget, times = Budget(tree_fd, MOST_TREE_BYTES), LateTimes()
    rules: Plain | Overlay
    if rules_of is Plain:
        rules = Plain(tree_fd, budget)
    else:
        rules = Overlay(tree_fd, [], times, budget, lambda: None)
    applier = Applier(tar, rules, times, budget, devices=False)
    try:
        for entry in tar:
            applier.apply(entry)
        applier.finish()
    finally:
        rules.tree.close()


def with_checksums(data: bytes) -> bytes:
    """The same with right sums in what looks like a header: else nothing behind it is read."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if len(block) == 512 and block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


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
    "layer": layer,
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
            data = mutated(data, known, choose)[:MOST_BYTES]
        yield seed, data


def mutated(data: bytes, known: list[bytes], choose: random.Random) -> bytes:
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
    """What a target raises that its callers do not expect; TimeoutError when it takes for ever."""
    began = time.thread_time()
    try:
        TARGETS[target](data)
    except Internal as error:
        return error
    except LighterError:
        pass
    except Exception as error:
        return error
    took = time.thread_time() - began
    return TimeoutError(f"{took:.1f} s") if took > MOST_S else None


def keep(target: str, data: bytes) -> Path:
    """Put a failing input into the corpus, where every later run begins with it."""
    path = CORPUS / target / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path
