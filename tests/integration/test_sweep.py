"""The sweep of tests/sweeps.py over what ctl asks: images, networks, volumes, changes, runs.

`make test` has an error at every point, and of some scenarios a standstill of the manager and its
death, one after the other. `make soak` has a mistake at every point too, and a death, also of a
manager that stands, in a cycle of its own each.
"""

from collections.abc import Callable, Iterator

import pytest

from tests import census, images
from tests.harness import Lighterd
from tests.networks import NetworkedLighterd
from tests.registries import DebianRegistry, Scripted, small_image
from tests.sweeps import Scenario, Sweep, read_commands

pytestmark = pytest.mark.timeout(600)

# By scenario, a command a line: "{registry}" has an image app:1, "{target}" takes what is pushed,
# "{n}" is the number of the cycle; a line with a "-" may find nothing to do.
COMMANDS = {
    "pull": """
        images pull {registry}/app:1
        images rm {registry}/app:1""",
    "import": """
        -n other images import {archive}
        -n other images rm {image}""",
    "export": """
        images export {base}/out.tar {image}""",
    "push": """
        images push --plain-http {target}/x{n}:1 {image}""",
    "convert": """
        images convert --oci --zstd {image} made:1
        images rm made:1""",
    "commit": """
        create --name one {image} sleep 600
        start one
        commit one made:1
        images rm made:1
        rm -f one""",
    "changes": """
        create --name one -v v:/data {image} sleep 600
        start one
        update --pids-limit 77 one
        restart -t 0 one
        stop -t 0 one
        rename one two
        rm -f two
        volume rm v""",
    "run": """
        run --rm --name one {image} true
        - rm -f one""",
    "network": """
        create --name one --network a -p 8080:80 {image} sleep 600
        start one
        rm -f one""",
    "connect": """
        create --name one {image} sleep 600
        start one
        network connect a one
        network disconnect a one
        rm -f one""",
}
NETWORKED = ("network", "connect")
# What `make test` has of kinds that take longer; the rest is `make soak`'s.
STANDING = ("changes", "network")
KILLED = ("convert",)


def rest_to_soak(names: tuple[str, ...]) -> list[object]:
    rest = [pytest.param(name, marks=pytest.mark.soak) for name in COMMANDS if name not in names]
    return [*names, *rest]


Swept = Callable[[str], tuple[Sweep, dict[str, int]]]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """The sweep of a scenario and its points, counted once."""
    base = tmp_path_factory.mktemp("sweep")
    owners = census.Owners()
    plain, networked = Lighterd(owners), NetworkedLighterd(owners)
    found: dict[str, tuple[Sweep, dict[str, int]]] = {}
    image = small_image(20_000, 10_000)
    with Scripted() as registry, DebianRegistry(base / "target") as target:
        registry.serve(image, "app", "1")
        words = {
            "registry": registry.host,
            "target": target.host,
            "archive": images.busybox_archive(compressed=True),
            "base": base,
            "image": images.REFERENCE,
        }

        def sweep(name: str) -> tuple[Sweep, dict[str, int]]:
            if name not in found:
                lighterd = networked if name in NETWORKED else plain
                if lighterd.process is None:
                    lighterd.start().import_busybox()
                steps, vain = read_commands(COMMANDS[name], lighterd.ctl_argv(), words)
                left = networked.left_of_networks if name in NETWORKED else list
                made = Sweep(lighterd, Scenario(steps, vain, left))
                found[name] = made, made.points()
            found[name][0].said.clear()
            return found[name]

        try:
            networked.write("10-a.conflist", networked.bridge("a", "10.20.0.0/24"))
            yield sweep
        finally:
            for lighterd in (plain, networked):
                lighterd.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_error_at_each_point_is_told_and_what_was_asked_can_be_repeated(
    swept: Swept, name: str
) -> None:
    sweep, points = swept(name)
    sweep.fail(points, "error")


@pytest.mark.soak
@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_at_each_point_is_told_and_what_was_asked_can_be_repeated(
    swept: Swept, name: str
) -> None:
    sweep, points = swept(name)
    sweep.fail(points, "bug")


@pytest.mark.parametrize("name", rest_to_soak(STANDING))
def test_a_manager_that_stands_still_at_each_point_goes_on(swept: Swept, name: str) -> None:
    sweep, points = swept(name)
    sweep.stand_still(points)


@pytest.mark.parametrize("name", rest_to_soak(KILLED))
def test_a_manager_killed_at_each_point_has_a_next_that_goes_on(swept: Swept, name: str) -> None:
    sweep, points = swept(name)
    sweep.die(points)


@pytest.mark.parametrize("action", ["abort", "error", "bug"])
@pytest.mark.parametrize("name", ["import"])
def test_a_worker_that_fails_or_dies_costs_its_command_alone(
    swept: Swept, name: str, action: str
) -> None:
    sweep, _points = swept(name)
    sweep.lose_workers(action)


@pytest.mark.soak
@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_manager_that_ends_at_a_point(swept: Swept, name: str, stopped: bool) -> None:
    sweep, points = swept(name)
    sweep.die(points, stopped=stopped, apart=True)
