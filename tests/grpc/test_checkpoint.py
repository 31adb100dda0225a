"""Tasks.Checkpoint and restore by Tasks.Create, with a runtime that stands in for CRIU."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lighter.daemon.checkpoints.document import CONFIG, CRIU
from lighter.daemon.grpc.pb import containers_pb2, leases_pb2, tasks_pb2, types_pb2
from lighter.daemon.grpc.pb.runc_options_pb2 import CheckpointOptions
from lighter.daemon.grpc.pb.task_types_pb2 import Status
from tests.grpc.client import Api
from tests.grpc.conftest import run_ctr
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.integration.test_checkpoint import with_stand_in

RUNNING = int(Status.RUNNING)
OPTIONS = "containerd.runc.v1.CheckpointOptions"


@pytest.fixture
def standing_in(make_lighterd: Callable[..., Lighterd], tmp_path: Path) -> Lighterd:
    """With a container that runs."""
    lighterd = with_stand_in(make_lighterd, tmp_path)
    ctr(lighterd, "run", "-d", REFERENCE, "c", "sleep", "1000")
    return lighterd


@pytest.fixture
def api(standing_in: Lighterd) -> Iterator[Api]:
    with Api(standing_in.grpc_address, lease="mine") as api:
        api.call(leases_pb2, "Leases", "Create", id="mine")
        yield api


def ctr(lighterd: Lighterd, *words: str) -> str:
    done = run_ctr(lighterd.grpc_address, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def checkpoint(api: Api, **options: Any) -> list[Any]:
    request = tasks_pb2.CheckpointTaskRequest(container_id="c")
    request.options.type_url = OPTIONS
    request.options.value = CheckpointOptions(**options).SerializeToString()
    fields = {"container_id": "c", "options": request.options}
    return list(api.call(tasks_pb2, "Tasks", "Checkpoint", **fields).descriptors)


def status(api: Api, name: str) -> int:
    return int(api.call(tasks_pb2, "Tasks", "Get", container_id=name).process.status)


def test_into_a_directory_of_the_clients(standing_in: Lighterd, api: Api, tmp_path: Path) -> None:
    assert checkpoint(api, image_path=str(tmp_path / "live")) == []
    flags = (tmp_path / "live/inventory.img").read_text()
    assert "--leave-running" in flags and "--file-locks" not in flags
    assert status(api, "c") == RUNNING
    assert checkpoint(api, image_path=str(tmp_path / "last"), exit=True, file_locks=True) == []
    assert "--file-locks" in (tmp_path / "last/inventory.img").read_text()
    with pytest.raises(grpc.RpcError, match="cannot checkpoint a stopped container"):
        checkpoint(api, image_path=str(tmp_path / "none"))


def test_as_content_that_another_task_begins_with(standing_in: Lighterd, api: Api) -> None:
    criu, config = checkpoint(api)
    assert [criu.media_type, config.media_type] == [CRIU, CONFIG]
    held = api.call(leases_pb2, "Leases", "ListResources", id="mine").resources
    assert {criu.digest, config.digest} <= {one.id for one in held}
    standing_in.ctl("system", "prune", check=True)  # nothing else keeps them
    ctr(standing_in, "containers", "create", REFERENCE, "two", "sleep", "1000")
    key = api.call(containers_pb2, "Containers", "Get", id="two").container.snapshot_key
    mounts = json.loads(
        standing_in.ctl("--format", "json", "snapshots", "mounts", "/x", key, check=True).stdout
    )
    rootfs = [
        types_pb2.Mount(type=one["type"], source=one["source"], options=one["options"])
        for one in mounts
    ]
    wrong = types_pb2.Descriptor(media_type=CONFIG, digest=config.digest, size=config.size)
    with pytest.raises(grpc.RpcError, match="unsupported checkpoint type"):
        api.call(tasks_pb2, "Tasks", "Create", container_id="two", rootfs=rootfs, checkpoint=wrong)
    api.call(tasks_pb2, "Tasks", "Create", container_id="two", rootfs=rootfs, checkpoint=criu)
    api.call(tasks_pb2, "Tasks", "Start", container_id="two")
    assert status(api, "two") == RUNNING
    assert not list((standing_in.root / "content/ingest").iterdir())


def test_ctrs_own_words(standing_in: Lighterd, api: Api) -> None:
    """An image with its processes, and a container that goes on as that."""
    ref = "example.com/box:evening"
    ctr(standing_in, "containers", "checkpoint", "--task", "--image", "c", ref)
    assert status(api, "c") == RUNNING
    # It would share the first one's cgroup, which its specification names.
    ctr(standing_in, "tasks", "delete", "--force", "c")
    ctr(standing_in, "containers", "restore", "--live", "three", ref)
    await_that(lambda: status(api, "three") == RUNNING, 20, "it goes on")


@pytest.mark.parametrize("option", [{"cgroups_mode": "soft"}, {"empty_namespaces": ["network"]}])
def test_what_criu_is_not_told_is_refused(api: Api, option: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError, match=f"{next(iter(option))} cannot be had here"):
        checkpoint(api, **option)
    assert status(api, "c") == RUNNING
