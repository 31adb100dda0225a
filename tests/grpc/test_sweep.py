"""The sweep of tests/sweeps.py over what Debian's ctr asks: the same acts by containerd's API, in
which the client goes from call to call and keeps leases, snapshots and records itself.
"""

from collections.abc import Callable, Iterator

import pytest

from tests import census, images
from tests.grpc.conftest import run_ctr
from tests.harness import Lighterd
from tests.registries import DebianRegistry, Scripted, small_image
from tests.sweeps import Scenario, Sweep, read_commands

pytestmark = pytest.mark.timeout(600)

COMMANDS = {
    "pull": """
        images pull --plain-http {registry}/app:1
        images rm --sync {registry}/app:1""",
    "move": """
        images import {archive}
        images export {base}/out.tar {image}
        images push --plain-http {target}/x{n}:1 {image}
        images rm --sync {image}""",
}

Swept = Callable[[str], tuple[Sweep, dict[str, int]]]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """The sweep of a scenario and its points, counted once."""
    base = tmp_path_factory.mktemp("sweep")
    lighterd = Lighterd(census.Owners()).start()
    found: dict[str, tuple[Sweep, dict[str, int]]] = {}

    def let_go() -> None:
        """Of leases whose ctr was cut off."""
        listed = run_ctr(lighterd.grpc_address, "leases", "ls", "-q").stdout.decode().split()
        for lease in listed:
            run_ctr(lighterd.grpc_address, "leases", "rm", "--sync", lease)

    with Scripted() as registry, DebianRegistry(base / "target") as target:
        registry.serve(small_image(20_000, 10_000), "app", "1")
        words = {
            "registry": registry.host,
            "target": target.host,
            "archive": images.busybox_archive(),
            "base": base,
            "image": images.REFERENCE,
        }
        ctr = ["ctr", "--address", lighterd.grpc_address]

        def sweep(name: str) -> tuple[Sweep, dict[str, int]]:
            if name not in found:
                steps, vain = read_commands(COMMANDS[name], ctr, words)
                made = Sweep(lighterd, Scenario(steps, vain, let_go=let_go))
                found[name] = made, made.points()
            found[name][0].said.clear()
            return found[name]

        try:
            yield sweep
        finally:
            lighterd.close()


@pytest.mark.parametrize("action", ["error", pytest.param("bug", marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_fails_at_a_point_can_be_repeated(swept: Swept, name: str, action: str) -> None:
    sweep, points = swept(name)
    sweep.fail(points, action)


@pytest.mark.soak
@pytest.mark.parametrize("name", COMMANDS)
def test_a_manager_that_stands_still_at_each_point_goes_on(swept: Swept, name: str) -> None:
    sweep, points = swept(name)
    sweep.stand_still(points)


@pytest.mark.soak
@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_manager_that_ends_at_a_point(swept: Swept, name: str, stopped: bool) -> None:
    sweep, points = swept(name)
    sweep.die(points, stopped=stopped, apart=True)
