"""Commit: a container's changes as one more layer on its image, under a new name.

The layer is what the diff worker writes of the container's snapshot and its parent. The config is
the image's, with Dockerfile instructions applied to it; what the container was started with (its
command, its environment) does not get into it.
"""

import asyncio
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighter.daemon.content.blobs import Arrival
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.failures import from_os
from lighter.daemon.content.gc import Collector, Pin
from lighter.daemon.content.ingest import Ingest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.whole import whole
from lighter.daemon.files import write_whole
from lighter.daemon.images.documents import DOCKER_MANIFEST, MAX_DOCUMENT_BYTES, descriptor, load
from lighter.daemon.images.graph import labels_for
from lighter.daemon.images.reference import normalise
from lighter.daemon.images.service import ImageService
from lighter.daemon.images.store import ImageStore
from lighter.daemon.snapshots.service import SnapshotService
from lighter.daemon.types import Container, Descriptor, Image
from lighter.proto.errors import FailedPrecondition, InvalidArgument
from lighter.proto.faults import hit

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MAX_CHANGES = 200


@dataclass(frozen=True)
class CommitOptions:
    """`changes` are Dockerfile instructions, one each."""

    author: str = ""
    message: str = ""
    changes: tuple[str, ...] = ()


class Committer:
    """Makes images of containers."""

    def __init__(
        self,
        content: ContentStore,
        images: ImageService,
        store: ImageStore,
        collector: Collector,
        snapshots: SnapshotService,
    ) -> None:
        self._content = content
        self._images = images
        self._store = store
        self._collector = collector
        self._snapshots = snapshots

    async def run(self, container: Container, name: str, options: CommitOptions) -> Image:
        """Make the image `name`; one of that name is replaced. Returns it.

        Raises InvalidArgument for an instruction that is none, FailedPrecondition for a container
        whose image is not the one any more that it was made from.
        """
        namespace = container.namespace
        if container.options.get("id_root"):
            raise FailedPrecondition(
                f"commit container {container.id}: its ids are mapped, and so are its files' owners"
            )
        name = normalise(name)
        base = await self._images.config(namespace, container.image)
        parent = await self._parent(container)
        if parent != base.chain_id:
            raise FailedPrecondition(
                f"commit container {container.id}: the image {container.image} is another one now "
                "than the container was made from"
            )
        config = load(base.config, f"config of {base.name}")
        config["config"] = changed(config.get("config") or {}, options.changes)
        with self._content.new_ingest() as ingest, self._collector.pin() as pin:
            pin.content(namespace, base.manifest.digest)
            layer, diff_id, blob = await self._layer(container, parent, ingest, pin)
            hit("commit.layer")
            _extend(config, options, diff_id)
            target, documents = await self._documents(
                namespace, base.manifest, config, layer, ingest, pin
            )
            await self._content.adopt_all(namespace, [blob, *documents])
            hit("commit.adopted")
            (made,) = self._store.put_all(namespace, {name: target})
        return made

    async def _parent(self, container: Container) -> str:
        if not container.snapshot_key:
            raise FailedPrecondition(
                f"commit container {container.id}: its root is no snapshot of this manager"
            )
        where = (container.namespace, container.snapshotter, container.snapshot_key)
        return (await self._snapshots.get(*where)).parent

    async def _layer(
        self, container: Container, parent: str, ingest: Ingest, pin: Pin
    ) -> tuple[Descriptor, str, Arrival]:
        path = ingest.file("layer")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise from_os(f"commit container {container.id}", err) from err
        try:
            made = await self._snapshots.diff(
                container.namespace,
                container.snapshotter,
                (parent, container.snapshot_key),
                fd,
                "gzip",
            )
            await asyncio.to_thread(os.fsync, fd)
        finally:
            os.close(fd)
        digest, size = str(Digest.parse(made["digest"])), int(made["size_bytes"])
        pin.content(container.namespace, digest)
        labels = {"containerd.io/uncompressed": made["diff_id"]}
        return Descriptor("", digest, size), made["diff_id"], Arrival(path, digest, size, labels)

    async def _documents(
        self,
        namespace: str,
        old: Descriptor,
        config: dict[str, Any],
        layer: Descriptor,
        ingest: Ingest,
        pin: Pin,
    ) -> tuple[Descriptor, list[Arrival]]:
        """The new manifest, and the files of it and of its config."""
        data = await self._content.read_document(namespace, old.digest, MAX_DOCUMENT_BYTES)
        what = f"manifest {old.digest}"
        manifest = load(data, what)
        of_docker = old.media_type == DOCKER_MANIFEST
        media_type = _DOCKER_LAYER if of_docker else _OCI_LAYER
        entry = {"mediaType": media_type, "digest": layer.digest, "size": layer.size}
        manifest["layers"] = [*manifest["layers"], entry]
        manifest.pop("annotations", None)  # they speak of the image before
        config_type = manifest["config"]["mediaType"]
        made = await self._document(namespace, config_type, config, {}, ingest, pin)
        manifest["config"] = {
            "mediaType": config_type,
            "digest": made.digest,
            "size": made.size_bytes,
        }
        children = {"config": descriptor(manifest["config"], what)}
        for number, one in enumerate(manifest["layers"]):
            children[f"l.{number}"] = descriptor(one, what)
        labels = labels_for(children)
        top = await self._document(namespace, old.media_type, manifest, labels, ingest, pin)
        return Descriptor(old.media_type, top.digest, top.size_bytes), [made, top]

    async def _document(
        self,
        namespace: str,
        media_type: str,
        document: Mapping[str, Any],
        labels: Mapping[str, str],
        ingest: Ingest,
        pin: Pin,
    ) -> Arrival:
        data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        if len(data) > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"commit container: its {media_type} becomes too large")
        digest = Digest.of(data)
        pin.content(namespace, digest)
        path = ingest.file(f"document-{digest.hex}")
        try:
            await whole(asyncio.to_thread(write_whole, path, data, 0o600, True))
        except OSError as err:
            raise from_os("commit container", err) from err
        return Arrival(path, digest, len(data), labels)


def _extend(config: dict[str, Any], options: CommitOptions, diff_id: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    config["created"] = now
    if options.author:
        config["author"] = options.author
    said = {"created": now, "created_by": "ctl commit"}
    if options.author:
        said["author"] = options.author
    if options.message:
        said["comment"] = options.message
    config["history"] = [*(config.get("history") or []), said]
    rootfs = config.get("rootfs") or {"type": "layers"}
    config["rootfs"] = {**rootfs, "diff_ids": [*(rootfs.get("diff_ids") or []), diff_id]}


def changed(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`config` with Dockerfile instructions applied. Raises InvalidArgument."""
    if len(changes) > MAX_CHANGES:
        raise InvalidArgument(f"commit: over {MAX_CHANGES} changes")
    made = dict(config)
    for text in changes:
        word, _, rest = text.strip().partition(" ")
        apply, rest = _INSTRUCTIONS.get(word.upper()), rest.strip()
        if apply is None or not rest:
            known = ", ".join(_INSTRUCTIONS)
            raise InvalidArgument(f"commit: {text[:80]!r} is none of {known} with a value")
        apply(made, rest)
    return made


def _words(text: str) -> list[str]:
    """The exec form, a JSON array, or the shell form."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError as err:
            raise InvalidArgument(f"commit: {text[:80]!r}: {err}") from err
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InvalidArgument(f"commit: {text[:80]!r} is no list of texts")
        return words
    return ["/bin/sh", "-c", text]


def _pairs(text: str) -> dict[str, str]:
    """`key=value …`, or the old form `key value`."""
    try:
        words = shlex.split(text)
    except ValueError as err:
        raise InvalidArgument(f"commit: {text[:80]!r}: {err}") from err
    if words and "=" not in words[0]:
        key, _, value = text.partition(" ")
        return {key: value.strip()}
    if not all(word.partition("=")[0] and "=" in word for word in words):
        raise InvalidArgument(f"commit: {text[:80]!r}: expected KEY=VALUE")
    return dict(word.split("=", 1) for word in words)


def _env(config: dict[str, Any], text: str) -> None:
    new = _pairs(text)
    kept = [one for one in config.get("Env") or () if one.partition("=")[0] not in new]
    config["Env"] = [*kept, *(f"{key}={value}" for key, value in new.items())]


def _label(config: dict[str, Any], text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **_pairs(text)}


def _set(key: str, read: Callable[[str], Any]) -> Callable[[dict[str, Any], str], None]:
    def apply(config: dict[str, Any], text: str) -> None:
        config[key] = read(text)

    return apply


def _add(key: str) -> Callable[[dict[str, Any], str], None]:
    def apply(config: dict[str, Any], text: str) -> None:
        names = _words(text) if text.startswith("[") else text.split()
        if key == "ExposedPorts":
            names = [name if "/" in name else f"{name}/tcp" for name in names]
        config[key] = {**(config.get(key) or {}), **{name: {} for name in names}}

    return apply


_INSTRUCTIONS: Mapping[str, Callable[[dict[str, Any], str], None]] = {
    "CMD": _set("Cmd", _words),
    "ENTRYPOINT": _set("Entrypoint", _words),
    "ENV": _env,
    "EXPOSE": _add("ExposedPorts"),
    "LABEL": _label,
    "STOPSIGNAL": _set("StopSignal", str),
    "USER": _set("User", str),
    "VOLUME": _add("Volumes"),
    "WORKDIR": _set("WorkingDir", str),
}
