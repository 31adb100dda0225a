"""A manager that dies under ctr: what ctr does next time is whole, and nothing is left behind.

The end of each instance compares its records with its disk (tests/harness).
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests import images
from tests.grpc.conftest import run_ctr
from tests.harness import Lighterd

POINTS = (
    "ingest.written",
    "ingest.adopted",
    "import.blob-renamed",
    "snapshot.recorded",
    "layers.applied",
)


def test_a_manager_that_dies_at_each_point_of_an_import(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    archive = str(images.busybox_archive())
    lighterd = make_lighterd().start()

    def ctr(*words: str) -> str:
        done = run_ctr(lighterd.grpc_address, *words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.decode()

    for point in POINTS:
        lighterd.restart(FAULT=f"{point}:abort", FAULT_TRACE=str(tmp_path / "trace"))
        argv = ["ctr", "--address", lighterd.grpc_address, "images", "import", archive]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
            assert lighterd.process is not None and lighterd.process.wait(30) != 0, point
            lighterd.kill9()
            lighterd.start()
            first.communicate(timeout=60)  # it fails, or waits for the ref and goes on
        ctr("images", "import", archive)
        assert "complete (2/2)" in ctr("images", "check"), point
        ran = lighterd.ctl("run", "--rm", images.REFERENCE, "c1", "echo", point, check=True)
        assert ran.stdout.decode() == f"{point}\n"
        ctr("images", "rm", "--sync", images.REFERENCE)
        for lease in ctr("leases", "ls", "-q").split():  # of the ctr that was cut off
            ctr("leases", "rm", "--sync", lease)
        assert len(ctr("snapshots", "ls").splitlines()) == 1, point
        assert ctr("content", "ls", "-q") == "", point


def test_a_manager_that_dies_while_it_makes_a_layer(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd().start()
    lighterd.import_busybox()
    lighterd.ctl("containers", "create", images.REFERENCE, "c1", "true", check=True)
    with lighterd.client() as client:
        (row,) = client.call("containers", "list", cursor="", limit=10)["containers"]
    diff = ("snapshots", "diff", "--keep", row["snapshot_key"])
    before = run_ctr(lighterd.grpc_address, "content", "ls", "-q").stdout
    lighterd.restart(FAULT="layers.made:abort")
    argv = ["ctr", "--address", lighterd.grpc_address, *diff]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        assert lighterd.process is not None
        assert lighterd.process.wait(30) != 0
        first.kill()
    lighterd.start()
    assert run_ctr(lighterd.grpc_address, "content", "ls", "-q").stdout == before
    assert run_ctr(lighterd.grpc_address, *diff).returncode == 0
    # The one that was killed has not removed its view of the parent.
    rows = run_ctr(lighterd.grpc_address, "snapshots", "ls").stdout.decode().splitlines()
    for view in (line.split()[0] for line in rows if line.split()[-1] == "View"):
        assert run_ctr(lighterd.grpc_address, "snapshots", "rm", view).returncode == 0
