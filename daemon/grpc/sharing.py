"""The conversation of a Write about content that another namespace shares, as containerd's
namespacedWriter has it: all is there already, and the commit brings the client's labels.

Were the client told that the content exists, it would take its labels for recorded; an index or a
manifest without them keeps nothing of what it names.
"""

import time

from lighter.daemon.content.store import ContentStore
from lighter.daemon.grpc.pb import content_pb2 as pb
from lighter.daemon.grpc.translate import timestamp
from lighter.proto.errors import Unavailable


class Shared:
    """What a writer's first message, `first`, could have without sending it."""

    def __init__(
        self, content: ContentStore, namespace: str, first: pb.WriteContentRequest
    ) -> None:
        self._content = content
        self._namespace = namespace
        self._digest = first.expected
        self._size_bytes = 0
        if first.action == pb.STAT and first.expected:
            size_bytes = content.shared_size(first.expected)
            if first.total in (0, size_bytes):
                self._size_bytes = size_bytes

    def answer(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse | None:
        """None for who has to write like any other: nothing is shared, or it sends bytes.

        After the answer to a commit the namespace has the content. Raises Unavailable.
        """
        if not self._size_bytes or self._content.has(self._namespace, self._digest):
            return None
        answer = pb.WriteContentResponse(
            action=request.action, offset=self._size_bytes, digest=self._digest
        )
        if request.action == pb.STAT:
            answer.total = self._size_bytes
            answer.started_at.CopyFrom(timestamp(time.time_ns()))
            answer.updated_at.CopyFrom(answer.started_at)
            return answer
        as_it_is = (
            request.offset == self._size_bytes
            and request.total in (0, self._size_bytes)
            and request.expected in ("", self._digest)
        )
        if request.action != pb.COMMIT or request.data or not as_it_is:
            return None
        if not self._content.share(self._namespace, self._digest, dict(request.labels)):
            raise Unavailable(f"commit content {self._digest}: it is no longer shared; try again")
        return answer
