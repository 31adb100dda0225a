"""Commit: a container's changes as one more layer on its image, under a new name.

The layer is what the diff worker writes of the container's snapshot and its parent. The config is
the image's, with Dockerfile instructions applied to it; what the container was started with (its
command, its environment) does not get into it.
"""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighter.daemon.content.gc import Collector
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images.additions import Additions, entry, parent_of
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
        what = f"commit container {container.id}"
        if container.options.get("id_root"):
            raise FailedPrecondition(f"{what}: its ids are mapped, and so are its files' owners")
        name = normalise(name)
        base = await self._images.config(namespace, container.image)
        if await parent_of(self._snapshots, container, what) != base.chain_id:
            raise FailedPrecondition(
                f"{what}: the image {container.image} is another one now "
                "than the container was made from"
            )
        config = load(base.config, f"config of {base.name}")
        config["config"] = changed(config.get("config") or {}, options.changes)
        with self._collector.pin() as pin:
            async with self._content.new_ingest() as ingest:
                pin.content(namespace, base.manifest.digest)
                new = Additions(what, self._content, namespace, ingest, pin)
                of_docker = base.manifest.media_type == DOCKER_MANIFEST
                media_type = _DOCKER_LAYER if of_docker else _OCI_LAYER
                layer, diff_id = await new.layer(self._snapshots, container, media_type)
                hit("commit.layer")
                _extend(config, options, diff_id)
                target = await self._documents(namespace, base.manifest, config, layer, new)
                await new.adopt()
                hit("commit.adopted")
                (made,) = self._store.put_all(namespace, {name: target})
        return made

    async def _documents(
        self,
        namespace: str,
        old: Descriptor,
        config: dict[str, Any],
        layer: Descriptor,
        new: Additions,
    ) -> Descriptor:
        """The new manifest, with its config."""
        data = await self._content.read_document(namespace, old.digest, MAX_DOCUMENT_BYTES)
        what = f"manifest {old.digest}"
        manifest = load(data, what)
        manifest["layers"] = [*(manifest["layers"] or ()), entry(layer)]
        manifest.pop("annotations", None)  # they speak of the image before
        config_type = manifest["config"]["mediaType"]
        manifest["config"] = entry(await new.document(config_type, _compact(config)))
        children = {"config": descriptor(manifest["config"], what)}
        for number, one in enumerate(manifest["layers"]):
            children[f"l.{number}"] = descriptor(one, what)
        return await new.document(old.media_type, _compact(manifest), labels_for(children))


def _compact(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


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
