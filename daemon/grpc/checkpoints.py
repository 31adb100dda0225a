"""Checkpoints of running tasks by containerd's API, and tasks that begin as one.

CRIU's files are left in a directory of the client's, or become content that the client's lease
holds. A client that restores one names its content, and answers for where that is from: it is root
in effect, as containerd takes it.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from signal import SIGKILL

from lighter.daemon.checkpoints.document import CRIU
from lighter.daemon.checkpoints.service import ENDED_S, Checkpoints
from lighter.daemon.errors import from_os
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.leases import hold, holder
from lighter.daemon.grpc.pb import tasks_pb2 as pb
from lighter.daemon.grpc.pb.runc_options_pb2 import CheckpointOptions
from lighter.daemon.grpc.pb.types_pb2 import Descriptor
from lighter.daemon.grpc.translate import descriptor
from lighter.daemon.leases import CONTENT, Leases
from lighter.daemon.restarts.byhand import ByHand
from lighter.proto.errors import InvalidArgument, Unimplemented, Unknown

# What CRIU takes along besides, as runc spells it, and what it cannot be told here.
_FLAGS = {
    "open_tcp": "--tcp-established",
    "external_unix_sockets": "--ext-unix-sk",
    "terminal": "--shell-job",
    "file_locks": "--file-locks",
}
_NOT_HERE = ("empty_namespaces", "cgroups_mode")


class TaskCheckpoints:
    """The two ends of a checkpoint, as Tasks.Checkpoint and Tasks.Create have them."""

    def __init__(self, checkpoints: Checkpoints, by_hand: ByHand, leases: Leases) -> None:
        self._checkpoints = checkpoints
        self._by_hand = by_hand
        self._leases = leases

    async def make(
        self, call: Call, request: pb.CheckpointTaskRequest
    ) -> pb.CheckpointTaskResponse:
        """Raises FailedPrecondition where CRIU cannot, Unimplemented for its rarer options."""
        namespace, id_ = call.namespace, request.container_id
        options = CheckpointOptions()
        if request.options.type_url:
            anys.unpack(request.options, options)
        asked = [name for name in _NOT_HERE if getattr(options, name)]
        if request.parent_checkpoint:
            asked.append("parent_checkpoint")
        if asked:
            raise Unimplemented(f"checkpoint task {id_}: {', '.join(asked)} cannot be had here")
        stop = partial(self._by_hand.stop, namespace, id_, timeout_s=ENDED_S, signum=SIGKILL)
        end = stop if options.exit else None
        flags = [flag for name, flag in _FLAGS.items() if getattr(options, name)]
        if path := options.image_path:
            if not path.startswith("/"):
                raise InvalidArgument(f"checkpoint task {id_}: {path} is not absolute")
            await asyncio.to_thread(_make, path)
            await self._checkpoints.dump(namespace, id_, path, end, flags)
            return pb.CheckpointTaskResponse()
        lease = holder(self._leases, namespace, call.lease)

        def held(digest: str) -> None:
            hold(self._leases, namespace, lease, CONTENT, digest)

        made = await self._checkpoints.dump_content(namespace, id_, held, end, flags)
        return pb.CheckpointTaskResponse(descriptors=map(descriptor, made))

    @asynccontextmanager
    async def opened(self, namespace: str, checkpoint: Descriptor) -> AsyncIterator[str]:
        """A directory with its files. Raises Unknown for what is no checkpoint, NotFound."""
        if checkpoint.media_type != CRIU:
            raise Unknown(f'unsupported checkpoint type "{checkpoint.media_type}"')
        async with self._checkpoints.extracted(namespace, checkpoint.digest) as directory:
            yield directory


def _make(path: str) -> None:
    """The directory, as the runtime would make it. Raises as a write that fails."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as err:
        raise from_os(f"make checkpoint directory {path}", err) from err
