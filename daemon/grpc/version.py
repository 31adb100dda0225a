"""containerd.services.version.v1.Version."""

from google.protobuf.empty_pb2 import Empty

from lighter.daemon.grpc.calls import Call
from lighter.daemon.grpc.pb import version_pb2 as pb


class VersionService:
    """Ours, not containerd's: a client that asks is told who answers."""

    NAME = "containerd.services.version.v1.Version"

    def __init__(self, version: str, revision: str) -> None:
        answer = pb.VersionResponse(version=version, revision=revision)
        self._answer = answer.SerializeToString()

    async def version(self, _call: Call, _request: Empty) -> bytes:
        """A VersionResponse."""
        return self._answer
