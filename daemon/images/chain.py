"""The names of an image's snapshots: one for each layer upon those below it.

    chain id of the first layer   its diff id
    of each further one           sha256 of "<chain id below> <its diff id>"

(OCI image-spec, config.md, "Layer ChainID".) So images share the snapshots of layers they share.
"""

import hashlib
from collections.abc import Iterable

from lighter.daemon.images.documents import diff_ids, load
from lighter.daemon.images.graph import Resolved
from lighter.daemon.types import Descriptor
from lighter.proto.errors import InvalidArgument


def chain_ids(diffs: Iterable[str]) -> tuple[str, ...]:
    """The chain id of each layer, lowest first."""
    chain: list[str] = []
    for diff in diffs:
        if chain:
            joined = f"{chain[-1]} {diff}".encode()
            chain.append("sha256:" + hashlib.sha256(joined).hexdigest())
        else:
            chain.append(diff)
    return tuple(chain)


def layers_of(image: Resolved) -> tuple[tuple[Descriptor, str], ...]:
    """(descriptor, diff id) of each layer, lowest first. Raises InvalidArgument."""
    what = f"config {image.manifest.config.digest}"
    diffs = diff_ids(load(image.config, what), what)
    if len(diffs) != len(image.manifest.layers):
        raise InvalidArgument(
            f"parse {what}: it has {len(diffs)} diff ids for {len(image.manifest.layers)} layers"
        )
    return tuple(zip(image.manifest.layers, diffs, strict=True))


def chain_id(image: Resolved) -> str:
    """The name of the image's top snapshot, "" for an image without layers."""
    chain = chain_ids(diff for _, diff in layers_of(image))
    return chain[-1] if chain else ""
