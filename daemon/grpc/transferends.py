"""What a transfer is from and to, read from a client's messages into what our services take."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import transfer_types_pb2 as pb
from lighter.daemon.grpc.pb import types_pb2
from lighter.daemon.grpc.streams import Stream
from lighter.daemon.images import platforms
from lighter.daemon.images.importer import ImportOptions
from lighter.daemon.images.platforms import Platform
from lighter.daemon.registry.access import Access, Credential
from lighter.proto.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LighterError,
    Unavailable,
    Unimplemented,
)

ASK_S = 60.0
KINDS = (pb.OCIRegistry, pb.ImageStore, pb.ImageImportStream, pb.ImageExportStream)
_BY_NAME = {kind.DESCRIPTOR.full_name: kind for kind in KINDS}

M = TypeVar("M", bound=Message)


def read(value: Any) -> Message | None:
    """One of KINDS; None for anything else. Raises InvalidArgument for a malformed one."""
    kind = _BY_NAME.get(anys.name_of(value))
    if kind is None:
        return None
    message = kind()
    anys.unpack(value, message)
    return message


def platform(given: types_pb2.Platform) -> Platform:
    return platforms.normalise(given.os, given.architecture, given.variant)


@dataclass(frozen=True)
class Destination:
    """What an image is to be here. `digested` get the target's digest after them."""

    names: tuple[str, ...]
    digested: tuple[str, ...]
    labels: dict[str, str]
    platforms: tuple[Platform, ...]
    all_metadata: bool
    unpacks: tuple[tuple[Platform, str], ...]
    prefix: pb.ImageReference | None


def destination(store: pb.ImageStore) -> Destination:
    """Raises Unimplemented for what nobody would notice to have no effect."""
    if store.manifest_limit:
        raise Unimplemented("store image: a limit of manifests is not taken")
    whole = [given for given in store.extra_references if not given.is_prefix]
    prefixes = [given for given in store.extra_references if given.is_prefix]
    if len(prefixes) > 1:
        raise Unimplemented("store image: one prefix for names is taken, not several")
    return Destination(
        names=tuple(_distinct([store.name, *(one.name for one in whole if not one.add_digest)])),
        digested=tuple(_distinct(one.name for one in whole if one.add_digest)),
        labels=dict(store.labels),
        platforms=tuple(_distinct(map(platform, store.platforms))),
        all_metadata=store.all_metadata,
        unpacks=tuple((platform(one.platform), one.snapshotter) for one in store.unpacks),
        prefix=prefixes[0] if prefixes else None,
    )


T = TypeVar("T")


def _distinct(items: Iterable[T]) -> list[T]:
    return [item for item in dict.fromkeys(items) if item]


def import_options(to: Destination, archive: pb.ImageImportStream) -> ImportOptions:
    """The archive's own names are taken by a prefix alone; a whole name is the index's."""
    if len(to.names) > 1 or to.digested:
        raise Unimplemented("import archive: one name is taken for its index, not several")
    prefix = to.prefix or pb.ImageReference()
    return ImportOptions(
        names=to.prefix is not None,
        base_name=prefix.name,
        any_name=prefix.allow_overwrite,
        index_name=to.names[0] if to.names else "",
        digests=prefix.add_digest,
        skip_digest_for_named=prefix.skip_named_digest,
        platforms=to.platforms,
        all_platforms=not to.platforms,
        unpack=False,
        compress_blobs=archive.force_compress,
        labels=to.labels,
    )


def access(registry: pb.OCIRegistry, stream: Stream | None) -> Access:
    """How the registry is to be spoken to; `stream` is where its credentials are asked for."""
    resolver = registry.resolver
    if resolver.default_scheme not in ("", "http", "https"):
        raise InvalidArgument(f"reach registry: {resolver.default_scheme!r} is no scheme")
    if resolver.host_dir and not resolver.host_dir.startswith("/"):
        raise InvalidArgument(f"reach registry: {resolver.host_dir!r} is no absolute path")
    for name, value in resolver.headers.items():
        if not name.isascii() or not name.isprintable() or {*"\r\n\0"} & {*value}:
            raise InvalidArgument(f"reach registry: {name[:80]!r} is no header")
    return Access(
        plain_http=resolver.default_scheme == "http",
        hosts_dir=resolver.host_dir,
        headers={name: (value,) for name, value in resolver.headers.items()},
        ask=_Asking(stream, registry.reference) if stream is not None else None,
    )


class _Asking:
    """Asks the client for credentials, one host after the other."""

    def __init__(self, stream: Stream, reference: str) -> None:
        self._stream = stream
        self._reference = reference
        self._lock = asyncio.Lock()
        self._failed: LighterError | None = None

    async def __call__(self, host: str) -> Credential:
        what = f"ask the client for its credential of {host}"
        asked = pb.AuthRequest(host=host, reference=self._reference)
        answer = pb.AuthResponse()
        async with self._lock:
            # An answer says not of which host it is: after one that did not come, the next could be
            # either's.
            if self._failed is not None:
                raise self._failed
            try:
                async with asyncio.timeout(ASK_S):
                    await self._stream.send(anys.pack(asked))
                    message = await self._stream.receive()
            except TimeoutError as err:
                self._failed = DeadlineExceeded(f"{what}: no answer in {ASK_S:.0f} s")
                raise self._failed from err
            if message is None:
                self._failed = Unavailable(f"{what}: it has nothing more to say")
                raise self._failed
        anys.unpack(message, answer)
        match answer.authType:
            case pb.CREDENTIALS:
                return Credential(answer.username, answer.secret)
            case pb.REFRESH:
                return Credential(identity_token=answer.secret)
            case pb.HEADER:
                raise Unimplemented(f"{what}: it answers with a header, which is not taken")
        return Credential()
