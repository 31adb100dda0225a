"""F50, a power cut: what was answered is there and whole, and what was not is no half thing.

The instance lies on an ext4 of its own, which keeps what was synced and nothing else (loopdisk.py).
tests/vm/test_power.py does the same at every flush of a whole machine's disk.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests import census, images
from tests.harness import Lighterd, await_that
from tests.lives import process_state
from tests.loopdisk import Ext4
from tests.processes import with_title
from tests.registries import Scripted, small_image
from tests.storecheck import unfinished

pytestmark = pytest.mark.root

Powered = tuple[Lighterd, Ext4]


@pytest.fixture
def powered(make_lighterd: Callable[..., Lighterd]) -> Iterator[Powered]:
    lighterd = make_lighterd()
    lighterd.root.mkdir()
    with Ext4(lighterd.root) as disk:
        yield lighterd, disk
        if lighterd.process is not None and lighterd.process.poll() is None:
            lighterd.stop()
    shutil.rmtree(lighterd.root)
    lighterd.root.mkdir()


def cut_power(powered: Powered) -> None:
    """Nobody runs on, and nothing that was not synced is there."""
    lighterd, disk = powered
    stopped = stop_all(lighterd)
    copy = disk.cut()
    for pid in stopped - {lighterd.pid}:  # what they do now is not on that disk
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    lighterd.kill9()
    await_that(
        lambda: not with_title(f"lighter-worker --instance {lighterd.instance}"),
        20,
        "its workers have ended",
    )
    disk.come_back(copy)


def stop_all(lighterd: Lighterd) -> set[int]:
    """SIGSTOP to the manager, its spawner, workers and shims, and to containers: to whoever may
    write on that disk, those too that are forked meanwhile.
    """
    owners = lighterd.owners_of_this()
    stopped: set[int] = set()
    while running := {process.pid for process in census.processes(owners)} - stopped:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        await_that(
            lambda those=running: all(process_state(pid) in ("T", "Z", "") for pid in those),
            20,
            "all of them stand",
        )
        stopped |= running
    return stopped


def check_whole(lighterd: Lighterd) -> None:
    """Each record has its file and each blob its digest, and nothing is nobody's."""
    checked = lighterd.ctl("system", "check")
    assert checked.returncode == 0, checked.stdout


def named(lighterd: Lighterd) -> list[str]:
    return lighterd.ctl("images", "ls", "-q", check=True).stdout.decode().split()


def test_f50_what_was_answered_outlives_a_power_cut(powered: Powered) -> None:
    lighterd, _ = powered
    lighterd.start()
    image = lighterd.import_busybox()
    lighterd.ctl("images", "tag", image, "docker.io/library/other:1", check=True)
    lighterd.ctl("containers", "create", "-v", "v:/bin", image, "c", "true", check=True)
    cut_power(powered)
    lighterd.start()
    assert named(lighterd) == sorted([image, "docker.io/library/other:1"])
    check_whole(lighterd)
    # What it runs is the copy in its volume, which is made once.
    assert lighterd.ctl("start", "-a", "c").returncode == 0
    lighterd.ctl("rm", "c", check=True)
    lighterd.ctl("rmi", "other:1", check=True)
    cut_power(powered)
    lighterd.start()
    assert named(lighterd) == [image]
    assert b"c" not in lighterd.ctl("containers", "ls", "-q", check=True).stdout.split()
    check_whole(lighterd)
    assert lighterd.ctl("run", "--rm", image, "new", "true").returncode == 0


@pytest.mark.parametrize(
    "point", ["content.noted", "import.blob-renamed", "import.adopted", "unpack.committed"]
)
def test_f50_a_power_cut_amid_an_import_leaves_nothing_half_made(
    powered: Powered, point: str
) -> None:
    lighterd, _ = powered
    lighterd.start(FAULT=f"{point}:stop")
    with images.busybox_archive().open("rb") as archive:
        argv = lighterd.ctl_argv("images", "import", "-")
        with subprocess.Popen(argv, stdin=archive, stderr=subprocess.DEVNULL) as importing:
            await_that(lambda: process_state(lighterd.pid) == "T", 30, f"it stops at {point}")
            cut_power(powered)
            importing.kill()
    lighterd.start()
    check_whole(lighterd)
    assert named(lighterd) in ([], [images.REFERENCE])
    image = lighterd.import_busybox()
    assert lighterd.ctl("run", "--rm", image, "new", "true").returncode == 0
    check_whole(lighterd)


@pytest.mark.parametrize("point", ["ingest.written", "ingest.adopted", "pull.named"])
def test_f50_a_power_cut_amid_a_pull_leaves_what_the_next_one_ends(
    powered: Powered, point: str
) -> None:
    lighterd, _ = powered
    with Scripted() as registry:
        registry.serve(small_image(300_000, 200_000), "app", "1")
        name = f"{registry.host}/app:1"
        lighterd.start(FAULT=f"{point}:stop")
        argv = lighterd.ctl_argv("images", "pull", name)
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as pulling:
            await_that(lambda: process_state(lighterd.pid) == "T", 30, f"it stops at {point}")
            cut_power(powered)
            pulling.kill()
        lighterd.start()
        check_whole(lighterd)
        # It was not answered, and may have been named.
        assert named(lighterd) in ([], [name] if point == "pull.named" else [])
        lighterd.ctl("images", "pull", name, check=True)
    assert named(lighterd) == [name]
    check_whole(lighterd)
    assert unfinished(lighterd.root) == []


@pytest.mark.parametrize("point", ["gc.rows-deleted", "gc.files-removed"])
def test_f50_a_power_cut_amid_a_collection_takes_nothing_that_is_named(
    powered: Powered, point: str
) -> None:
    lighterd, _ = powered
    lighterd.start()
    image = lighterd.import_busybox()

    lighterd.restart(FAULT=f"{point}:stop")
    with subprocess.Popen(lighterd.ctl_argv("rmi", image), stderr=subprocess.DEVNULL) as removing:
        await_that(lambda: process_state(lighterd.pid) == "T", 30, f"it stops at {point}")
        cut_power(powered)
        removing.kill()
    lighterd.start()
    check_whole(lighterd)
    if named(lighterd):  # one of the start's own collections was it: nothing may have gone
        assert lighterd.ctl("run", "--rm", image, "old", "true").returncode == 0
    assert lighterd.import_busybox() == image
    assert lighterd.ctl("run", "--rm", image, "new", "true").returncode == 0
