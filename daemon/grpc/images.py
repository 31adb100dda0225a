"""containerd.services.images.v1.Images."""

from contextlib import AbstractContextManager, suppress
from dataclasses import replace

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.content.digest import Digest
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.leases import hold
from lighter.daemon.grpc.pb import images_pb2 as pb
from lighter.daemon.grpc.translate import descriptor, label_changes, nanoseconds, target, timestamp
from lighter.daemon.grpc.words import quoted, saying
from lighter.daemon.images.service import ImageService
from lighter.daemon.leases import IMAGES, MAX_TIME_NS, Leases
from lighter.daemon.types import Descriptor, Image
from lighter.proto.daemon_api import PAGE_ROWS
from lighter.proto.errors import AlreadyExists, InvalidArgument, NotFound

_ANNOTATION = "annotations."


class ImagesService:
    NAME = "containerd.services.images.v1.Images"

    def __init__(self, images: ImageService, leases: Leases) -> None:
        self._images = images
        self._leases = leases

    async def get(self, call: Call, request: pb.GetImageRequest) -> pb.GetImageResponse:
        with _of(request.name):
            found = self._images.record(call.namespace, request.name)
        return pb.GetImageResponse(image=_message(found))

    async def list(self, call: Call, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        namespace, cursor, more = call.namespace, "", True
        answer = pb.ListImagesResponse()
        while more:
            page, cursor = self._images.page(namespace, request.filters, cursor, PAGE_ROWS)
            answer.images.extend(map(_message, page))
            more = bool(cursor)
        return answer

    async def create(self, call: Call, request: pb.CreateImageRequest) -> pb.CreateImageResponse:
        wanted = request.image
        _check_name(wanted.name)
        namespace = call.namespace
        with _of(wanted.name):
            made = self._images.create(
                namespace, wanted.name, _checked(wanted), dict(wanted.labels), _epoch(request)
            )
        with suppress(NotFound):  # a lease that has ended: a name keeps itself
            hold(self._leases, namespace, call.lease, IMAGES, made.name)
        return pb.CreateImageResponse(image=_message(made))

    async def update(self, call: Call, request: pb.UpdateImageRequest) -> pb.UpdateImageResponse:
        wanted, mask, namespace = request.image, request.update_mask, call.namespace
        _check_name(wanted.name)
        with _of(wanted.name):
            old = self._images.record(namespace, wanted.name)
            what = f"image {quoted(wanted.name)}"
            fixed = [path for path in mask.paths if _is_of_target(path)]
            changes = label_changes(old.labels, wanted.labels, mask, what, fixed)
            labels = {k: v for k, v in {**old.labels, **changes}.items() if v}
            new = _target(old.target, wanted, tuple(mask.paths))
            changed = self._images.update(namespace, wanted.name, new, labels, _epoch(request))
        return pb.UpdateImageResponse(image=_message(changed))

    async def delete(self, call: Call, request: pb.DeleteImageRequest) -> Empty:
        namespace, name = call.namespace, request.name
        with _of(name):
            found = self._images.record(namespace, name)
            if request.HasField("target") and request.target.digest != found.target.digest:
                raise NotFound(f"delete image {name}: its target is {found.target.digest}")
            await self._images.forget(namespace, name, sync=request.sync)
        return Empty()


def _is_of_target(path: str) -> bool:
    return path in ("target", "annotations") or path.startswith(_ANNOTATION)


def _target(old: Descriptor, wanted: pb.Image, paths: tuple[str, ...]) -> Descriptor:
    """The target that an update leaves: the new one without a mask, or with the path `target`."""
    if not paths or "target" in paths:
        return _checked(wanted)
    given = wanted.target.annotations
    annotations = dict(given if "annotations" in paths else old.annotations)
    for path in paths:
        if path.startswith(_ANNOTATION):
            name = path.removeprefix(_ANNOTATION)
            annotations[name] = given.get(name, "")
    kept = {name: value for name, value in annotations.items() if value}
    return replace(old, annotations=kept)


def _checked(image: pb.Image) -> Descriptor:
    """Raises InvalidArgument for a target that containerd takes for none."""
    Digest.parse(image.target.digest)
    if image.target.size <= 0:
        raise InvalidArgument("Target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("Target.MediaType must be set")
    return target(image.target)


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgument("image name must not be empty")


def _epoch(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> int | None:
    """The time that a build which is to be reproducible gives its record."""
    if not request.HasField("source_date_epoch"):
        return None
    at_ns = nanoseconds(request.source_date_epoch)
    if abs(at_ns) > MAX_TIME_NS:
        raise InvalidArgument(f"record image {request.image.name}: source_date_epoch is too far")
    return at_ns


def _of(name: str) -> AbstractContextManager[None]:
    what = f"image {quoted(name)}"
    return saying({NotFound: f"{what}: not found", AlreadyExists: f"{what}: already exists"})


def _message(image: Image) -> pb.Image:
    return pb.Image(
        name=image.name,
        labels=image.labels,
        target=descriptor(image.target),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )
