"""containerd.services.content.v1.Content."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing, suppress
from functools import partial

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.content.gc import Collector
from lighter.daemon.content.ingests import Ingests, IngestStatus
from lighter.daemon.content.store import ContentStore
from lighter.daemon.content.writer import Writer
from lighter.daemon.filters import any_of
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.leases import hold, holder
from lighter.daemon.grpc.pb import content_pb2 as pb
from lighter.daemon.grpc.sharing import Shared
from lighter.daemon.grpc.translate import label_changes, timestamp
from lighter.daemon.grpc.words import saying
from lighter.daemon.leases import CONTENT, INGESTS, Leases
from lighter.daemon.limits import BLOBS, Places
from lighter.daemon.types import ContentInfo
from lighter.proto.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
    OutOfRange,
    Unavailable,
)

READ_BYTES = 1 << 20  # one message of Read
LIST_ROWS = 100  # one message of List


class ContentService:
    NAME = "containerd.services.content.v1.Content"

    def __init__(
        self,
        content: ContentStore,
        ingests: Ingests,
        leases: Leases,
        collector: Collector,
    ) -> None:
        self._content = content
        self._ingests = ingests
        self._leases = leases
        self._collector = collector
        self._places = Places(BLOBS)

    async def info(self, call: Call, request: pb.InfoRequest) -> pb.InfoResponse:
        with _of(request.digest):
            found = self._content.info(call.namespace, request.digest)
        return pb.InfoResponse(info=_info(found))

    async def update(self, call: Call, request: pb.UpdateRequest) -> pb.UpdateResponse:
        digest = request.info.digest
        with _of(digest):
            old = self._content.info(call.namespace, digest)
            changes = label_changes(
                old.labels, request.info.labels, request.update_mask, f'content info "{digest}"'
            )
            changed = self._content.label(call.namespace, digest, changes)
        self._collector.on_relabelled(old.labels, changed.labels)
        return pb.UpdateResponse(info=_info(changed))

    async def list(
        self, call: Call, request: pb.ListContentRequest
    ) -> AsyncIterator[pb.ListContentResponse]:
        namespace, cursor, more = call.namespace, "", True
        while more:
            page, cursor = self._content.list(namespace, cursor, LIST_ROWS, request.filters)
            if page:
                yield pb.ListContentResponse(info=map(_info, page))
            more = bool(cursor)

    async def delete(self, call: Call, request: pb.DeleteContentRequest) -> Empty:
        with _of(request.digest):
            await self._content.delete(call.namespace, request.digest)
        self._collector.on_deleted()
        return Empty()

    async def read(
        self, call: Call, request: pb.ReadContentRequest
    ) -> AsyncIterator[pb.ReadContentResponse]:
        namespace, digest = call.namespace, request.digest
        offset = max(0, request.offset)
        with self._places.take(f"read content {digest}"), self._collector.pin() as pin:
            with _of(digest):
                size_bytes = self._content.info(namespace, digest).size
                if offset > size_bytes:
                    raise OutOfRange(f"read past object length {size_bytes} bytes")
                pin.content(namespace, digest)
                fd = self._content.open_known(digest, size_bytes)
            end = min(size_bytes, offset + request.size) if request.size > 0 else size_bytes
            try:
                while offset < end:
                    wanted = min(READ_BYTES, end - offset)
                    data = _cached(fd, wanted, offset)
                    if not data:
                        data = await asyncio.to_thread(os.pread, fd, wanted, offset)
                    if not data:
                        raise DataLoss(f"read content {digest}: it ends after {offset} bytes")
                    yield pb.ReadContentResponse(offset=offset, data=data)
                    offset += len(data)
            finally:
                os.close(fd)

    async def status(self, call: Call, request: pb.StatusRequest) -> pb.StatusResponse:
        with saying({NotFound: f"reference {request.ref}: not found"}):
            return pb.StatusResponse(
                status=_status(self._ingests.status(call.namespace, request.ref))
            )

    async def list_statuses(
        self, call: Call, request: pb.ListStatusesRequest
    ) -> pb.ListStatusesResponse:
        wanted = any_of(request.filters)
        found = self._ingests.list(call.namespace)
        return pb.ListStatusesResponse(
            statuses=[_status(one) for one in found if wanted(partial(_status_field, one))]
        )

    async def abort(self, call: Call, request: pb.AbortRequest) -> Empty:
        said = {
            NotFound: f"reference {request.ref}: not found",
            Unavailable: f"ref {request.ref} locked: unavailable",
        }
        with saying(said):
            await self._ingests.abort(call.namespace, request.ref)
        return Empty()

    # --- writing

    async def write(
        self, call: Call, requests: AsyncIterator[pb.WriteContentRequest]
    ) -> AsyncIterator[pb.WriteContentResponse]:
        """One writer's conversation: its first message names the ingest and locks it, each is
        answered with where the ingest stands. What a client leaves behind waits for the next."""
        with self._places.take("write content"):
            async with aclosing(self._write(call, requests)) as answers:
                async for answer in answers:
                    yield answer

    async def _write(
        self, call: Call, requests: AsyncIterator[pb.WriteContentRequest]
    ) -> AsyncGenerator[pb.WriteContentResponse, None]:
        incoming = aiter(requests)
        request = await anext(incoming, None)
        if request is None or not request.ref:
            raise InvalidArgument("first message must have a reference")
        namespace, ref = call.namespace, request.ref
        lease = holder(self._leases, namespace, call.lease)
        total, expected = request.total, request.expected
        shared = Shared(self._content, namespace, request)
        while (answer := shared.answer(request)) is not None:
            if answer.action == pb.COMMIT:
                hold(self._leases, namespace, lease, CONTENT, answer.digest)
                with suppress(LighterError):  # of no use any more, if somebody has begun it
                    await self._ingests.abort(namespace, ref)
                yield answer
                return
            yield answer
            request = await anext(incoming, None)
            if request is None:
                return
        writer = await self._open(namespace, ref, total, expected, lease)
        async with writer:
            while request is not None:
                total, expected = request.total or total, request.expected or expected
                if request.expected and self._content.has(namespace, request.expected):
                    # Before anything is awaited: a collection may come in between.
                    hold(self._leases, namespace, lease, CONTENT, request.expected)
                    await writer.close()
                    with suppress(LighterError):
                        await self._ingests.abort(namespace, ref)
                    raise AlreadyExists(f"blob with expected digest {request.expected} exists")
                if request.action == pb.STAT:
                    yield self._stat(writer, total)
                else:
                    await _append(writer, request)
                    is_last = request.action == pb.COMMIT
                    if is_last:
                        await self._commit(writer, total, expected, dict(request.labels), lease)
                    yield pb.WriteContentResponse(
                        action=request.action, offset=writer.offset, digest=writer.digest
                    )
                    if is_last:
                        return  # some clients wait for the end and never close their side
                request = await anext(incoming, None)

    async def _open(
        self, namespace: str, ref: str, total: int, expected: str, lease: str
    ) -> Writer:
        said = {
            AlreadyExists: f"content {expected}: already exists",
            Unavailable: f"ref {namespace}/{ref} locked: unavailable",
        }
        try:
            with saying(said):
                writer = await self._ingests.open(
                    namespace, ref, total_bytes=max(0, total), expected=expected, share=False
                )
        except AlreadyExists:
            hold(self._leases, namespace, lease, CONTENT, expected)
            raise
        try:
            hold(self._leases, namespace, lease, INGESTS, ref)
        except BaseException:
            await writer.close()
            raise
        return writer

    def _stat(self, writer: Writer, total: int) -> pb.WriteContentResponse:
        status = self._ingests.status(writer.namespace, writer.ref)
        return pb.WriteContentResponse(
            action=pb.STAT,
            started_at=timestamp(status.started_at),
            updated_at=timestamp(status.updated_at),
            offset=writer.offset,
            total=total,
            digest=writer.digest,
        )

    async def _commit(
        self, writer: Writer, total: int, expected: str, labels: dict[str, str], lease: str
    ) -> None:
        namespace, digest = writer.namespace, writer.digest
        with self._collector.pin() as pin:
            pin.content(namespace, digest)
            try:
                await writer.commit(max(0, total), expected, labels)
            except AlreadyExists as err:
                hold(self._leases, namespace, lease, CONTENT, digest)
                raise AlreadyExists(f"content {digest}: already exists") from err
            except (DataLoss, FailedPrecondition) as err:
                raise _not_expected(writer, total, expected, err) from err
            hold(self._leases, namespace, lease, CONTENT, digest)
        if lease:
            with suppress(NotFound):
                self._leases.remove(namespace, lease, INGESTS, writer.ref)
        await writer.close()  # the ref is free, however long the client keeps its stream


def _cached(fd: int, size_bytes: int, offset: int) -> bytes:
    """What the page cache has of it, b"" for nothing: ctr reads by pieces of 32 KiB, a call each,
    and to hand each to a thread costs more than to read it."""
    buffer = bytearray(size_bytes)
    try:
        return bytes(buffer[: os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)])
    except OSError:  # EAGAIN, or a file system that cannot tell
        return b""


async def _append(writer: Writer, request: pb.WriteContentRequest) -> None:
    """A message without an offset begins the ingest anew."""
    if request.offset and request.offset != writer.offset:
        raise OutOfRange(f"write @{request.offset} must occur at current offset {writer.offset}")
    if not request.offset and writer.offset:
        await writer.truncate(0)
    if request.data:
        await writer.write(request.data)


def _not_expected(writer: Writer, total: int, expected: str, err: LighterError) -> LighterError:
    """What a commit is refused with, in containerd's words."""
    if total > 0 and total != writer.offset:
        text = f"unexpected commit size {writer.offset}, expected {total}"
    elif expected and expected != writer.digest:
        text = f"unexpected commit digest {writer.digest}, expected {expected}"
    else:
        return err
    return FailedPrecondition(f"{text}: failed precondition")


def _of(digest: str) -> AbstractContextManager[None]:
    return saying({NotFound: f"content digest {digest}: not found"})


def _info(info: ContentInfo) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _status_field(status: IngestStatus, path: tuple[str, ...]) -> str | None:
    """What a filter asks of an ingest (containerd's AdaptStatus)."""
    return status.ref if path == ("ref",) else None


def _status(status: IngestStatus) -> pb.Status:
    return pb.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total_bytes,
        expected=status.expected,
    )
