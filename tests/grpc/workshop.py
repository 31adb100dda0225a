"""Containers that ctr has recorded in a namespace of the test's own, driven by the API alone."""

import contextlib
import json
import os
import secrets
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from google.protobuf.any_pb2 import Any as Any_

from lighter.daemon.grpc.pb import containers_pb2, snapshots_pb2, tasks_pb2
from tests import images
from tests.census import hierarchies
from tests.grpc.client import Api
from tests.harness import Lighterd, settled

PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"


def remove_place(lighterd: Lighterd, place: str) -> None:
    """Remove the cgroup of a namespace's containers, which stays when they are gone."""
    for hierarchy in hierarchies():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{hierarchy}{place}")
    lighterd.cgroups.discard(place)


class Workshop:
    """Use as a context manager; leaving it removes the containers."""

    def __init__(self, lighterd: Lighterd, fifos: Path) -> None:
        self.lighterd = lighterd
        self.namespace = f"workshop-{secrets.token_hex(4)}"
        self.fifos = fifos
        self.api = Api(lighterd.grpc_address, self.namespace)

    def __enter__(self) -> "Workshop":
        self.lighterd.cgroups.add(f"/{self.namespace}")
        self.api.__enter__()
        self.fifos.mkdir(exist_ok=True)
        self.ctr("images", "import", str(images.busybox_archive()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for container in self.ctr("containers", "ls", "-q").split():
            self.ctl("rm", "-f", container)
        self.api.__exit__(kind, error, trace)
        settled(self.lighterd.left_of_containers)
        remove_place(self.lighterd, f"/{self.namespace}")

    def ctr(self, *words: str) -> str:
        argv = ["ctr", "-a", self.lighterd.grpc_address, "-n", self.namespace, *words]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def ctl(self, *words: str) -> str:
        done = self.lighterd.ctl("--namespace", self.namespace, *words, timeout=60, check=True)
        return done.stdout.decode()

    def tasks(self, method: str, **fields: Any) -> Any:
        return self.api.call(tasks_pb2, "Tasks", method, **fields)

    def containers(self, method: str, **fields: Any) -> Any:
        return self.api.call(containers_pb2, "Containers", method, **fields)

    def fifo(self, name: str) -> str:
        path = self.fifos / f"{name}-{secrets.token_hex(4)}"
        os.mkfifo(path)
        return str(path)

    def create(self, container: str, *command: str, **fields: Any) -> int:
        """Record a container with ctr and create its task; returns the pid."""
        # Without the dashes ctr takes a -c of the command for its own.
        self.ctr("containers", "create", "--", images.REFERENCE, container, *command)
        return self.create_task(container, **fields)

    def create_task(self, container: str, **fields: Any) -> int:
        mounts = self.api.call(
            snapshots_pb2, "Snapshots", "Mounts", snapshotter="overlayfs", key=container
        ).mounts
        answer = self.tasks("Create", container_id=container, rootfs=mounts, **fields)
        return int(answer.pid)

    def exec(self, container: str, exec_id: str, *command: str, **fields: Any) -> None:
        """Add a process; it is not started."""
        process = {"args": list(command), "cwd": "/", "env": ["PATH=/bin"], "user": {}}
        spec = Any_(type_url=PROCESS, value=json.dumps(process).encode())
        self.tasks("Exec", container_id=container, exec_id=exec_id, spec=spec, **fields)
