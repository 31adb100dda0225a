"""Snapshots that containers stand on: clients of containerd remove the one, then the other."""

from lighter.daemon.grpc.pb import snapshots_pb2 as pb
from tests.grpc.client import Api
from tests.grpc.space import SNAPSHOTTER, refused
from tests.harness import Lighterd


def test_a_containers_snapshot_goes_before_it_and_not_while_it_has_a_task(
    lighterd: Lighterd, busybox: str
) -> None:
    with Api(lighterd.grpc_address) as api:

        def remove() -> None:
            api.call(pb, "Snapshots", "Remove", snapshotter=SNAPSHOTTER, key="c1")

        lighterd.ctl("run", "-d", busybox, "c1", "sleep", "1000", check=True)
        with refused("FAILED_PRECONDITION", "container c1 uses it"):
            remove()
        lighterd.ctl("tasks", "kill", "-s", "KILL", "c1", check=True)
        lighterd.ctl("tasks", "delete", "c1", check=True)
        refusal = lighterd.ctl("snapshots", "rm", "c1")
        assert refusal.returncode == 1 and b"container c1 uses it" in refusal.stderr
        remove()
        with refused("NOT_FOUND", "snapshot c1 does not exist"):
            remove()
        assert b"c1" in lighterd.ctl("containers", "ls", check=True).stdout
        failed = lighterd.ctl("tasks", "start", "-d", "c1")
        assert failed.returncode == 1 and b"snapshot c1" in failed.stderr
        lighterd.ctl("containers", "rm", "c1", check=True)
        assert b"c1" not in lighterd.ctl("containers", "ls", check=True).stdout
