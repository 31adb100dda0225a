"""What a layer's media type says of its compression, decided as containerd decides it.

OCI's plain tar is taken as it is; of every other type the first bytes tell the compression, since
images are about that name gzip and are zstd, or docker's plain tar that is gzip. What is not known
is refused: an encrypted layer or another kind of artifact would be unpacked as something else.
"""

from lighter.proto.errors import Unimplemented

_OCI = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)
_DOCKER = (
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_COMPRESSED = frozenset(
    (
        *(f"{base}+{how}" for base in _OCI for how in ("gzip", "zstd")),
        *(f"{base}{how}" for base in _DOCKER for how in ("", ".gzip", ".zstd")),
    )
)


def may_be_compressed(media_type: str) -> bool:
    """Whether the first bytes shall tell. "" is what nobody described. Raises Unimplemented."""
    if media_type in _OCI:
        return False
    if media_type and media_type not in _COMPRESSED:
        raise Unimplemented(f"unpack layer: media type {media_type!a} is not supported")
    return True
