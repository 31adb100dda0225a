"""A namespace of one test, by containerd's API: what tests of its stores say in one word.

Everything in it goes when it is left, in the order that nothing refuses.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import grpc
import pytest

from lighter.daemon.grpc.pb import (
    content_pb2,
    diff_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    types_pb2,
)
from tests.grpc.client import Api, code
from tests.harness import Lighterd, await_that, settled

SNAPSHOTTER = "overlayfs"
LEASE = "of-the-test"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Space:
    """Use as a context manager. `api` is a client of the namespace under a lease, so that nothing
    it makes is collected; `bare` is one without."""

    def __init__(self, lighterd: Lighterd, namespace: str) -> None:
        self.lighterd = lighterd
        self.namespace = namespace
        self.api = Api(lighterd.grpc_address, namespace, LEASE)
        self.bare = Api(lighterd.grpc_address, namespace)

    def __enter__(self) -> "Space":
        self.api.__enter__()
        self.bare.__enter__()
        self.leases("Create", id=LEASE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for image in self.images("List").images:
            self.images("Delete", name=image.name)
        for snapshotter in (SNAPSHOTTER, "native"):
            for key in [
                info.name
                for info in self.snapshot_infos("kind!=committed", snapshotter=snapshotter)
            ]:
                self.snapshots("Remove", snapshotter=snapshotter, key=key)
        for lease in self.leases("List").leases:
            self.leases("Delete", id=lease.id)
        if self.namespace in [row.name for row in self._namespaces("List").namespaces]:
            await_that(self._is_removed, 30, f"namespace {self.namespace} is removed")
        self.api.__exit__(kind, error, trace)
        self.bare.__exit__(kind, error, trace)
        settled(self.lighterd.left_of_containers)

    def _is_removed(self) -> bool:
        """A writer that was cut off may take a moment to let go."""
        try:
            self._namespaces("Delete", name=self.namespace)
        except grpc.RpcError as err:
            assert code(err) == "FAILED_PRECONDITION"
            return False
        return True

    def leased(self, lease: str) -> Api:
        """A further client, whose calls are made under a lease. The caller closes it."""
        return Api(self.api.path, self.namespace, lease)

    # --- the services

    def content(self, method: str, **fields: Any) -> Any:
        return self.api.call(content_pb2, "Content", method, **fields)

    def images(self, method: str, **fields: Any) -> Any:
        return self.api.call(images_pb2, "Images", method, **fields)

    def leases(self, method: str, **fields: Any) -> Any:
        return self.api.call(leases_pb2, "Leases", method, **fields)

    def snapshots(self, method: str, **fields: Any) -> Any:
        fields.setdefault("snapshotter", SNAPSHOTTER)
        return self.api.call(snapshots_pb2, "Snapshots", method, **fields)

    def diff(self, method: str, **fields: Any) -> Any:
        return self.api.call(diff_pb2, "Diff", method, **fields)

    def _namespaces(self, method: str, **fields: Any) -> Any:
        return self.api.call(namespaces_pb2, "Namespaces", method, **fields)

    # --- content in one word

    def put(
        self, data: bytes, labels: Mapping[str, str] | None = None, api: Api | None = None
    ) -> str:
        """Write content; returns its digest."""
        digest = digest_of(data)
        commit = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=f"put-{digest}",
            total=len(data),
            expected=digest,
            data=data,
            labels=labels or {},
        )
        (answer,) = (api or self.api).converse(content_pb2, "Content", "Write", [commit])
        assert (answer.digest, answer.offset) == (digest, len(data))
        return digest

    def read(self, digest: str, **fields: Any) -> bytes:
        return b"".join(
            part.data
            for part in self.api.stream(content_pb2, "Content", "Read", digest=digest, **fields)
        )

    def content_infos(self, *filters: str) -> list[Any]:
        found = self.api.stream(content_pb2, "Content", "List", filters=filters)
        return [info for page in found for info in page.info]

    def digests(self, *filters: str) -> set[str]:
        return {info.digest for info in self.content_infos(*filters)}

    # --- snapshots and images

    def snapshot_infos(self, *filters: str, snapshotter: str = SNAPSHOTTER) -> list[Any]:
        found = self.api.stream(
            snapshots_pb2, "Snapshots", "List", snapshotter=snapshotter, filters=filters
        )
        return [info for page in found for info in page.info]

    def keys(self, *filters: str) -> list[str]:
        return [info.name for info in self.snapshot_infos(*filters)]

    def image(self, name: str, data: bytes, **labels: str) -> Any:
        """Name a document that is content."""
        wanted = images_pb2.Image(name=name, target=descriptor(data), labels=labels)
        return self.images("Create", image=wanted).image

    def told(self, topic: str) -> list[tuple[str, Any]]:
        """(topic, body) of the namespace's events whose topic begins so, as `ctl` gets them."""
        with self.lighterd.client(self.namespace) as client:
            events = list(client.stream("events", "subscribe", since=0, follow=False))
        return [(one["topic"], one["event"]) for one in events if one["topic"].startswith(topic)]

    def collect(self) -> None:
        """A collection that is over when this returns: a lease's end asks for it."""
        self.leases("Create", id="to-collect")
        self.leases("Delete", id="to-collect", sync=True)


def descriptor(
    data: bytes, media_type: str = "application/vnd.oci.image.manifest.v1+json"
) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def coroutines(lighterd: Lighterd) -> int:
    """How many the manager runs."""
    with lighterd.client() as client:
        return int(client.call("system", "health")["coroutines"])


def level(look: Callable[[], int]) -> int:
    """What a look finds, once the next one finds it too: what a client had that was there before
    goes a little after it.
    """
    seen = [look()]

    def is_level() -> bool:
        time.sleep(0.1)
        seen.append(look())
        return seen[-1] == seen[-2]

    await_that(is_level, 30, "the manager is at rest")
    return seen[-1]


class Refused:
    """What a call was refused with: `with refused("NOT_FOUND", "image"): …`."""

    def __init__(self, wanted: str, text: str = "") -> None:
        self._wanted = wanted
        self._text = text
        self._raises = pytest.raises(grpc.RpcError)

    def __enter__(self) -> None:
        self._caught = self._raises.__enter__()

    def __exit__(self, *error: Any) -> bool:
        assert self._raises.__exit__(*error), error
        found = self._caught.value
        assert isinstance(found, grpc.Call)
        assert code(found) == self._wanted, found.details()
        assert self._text in (found.details() or ""), found.details()
        return True


refused = Refused
