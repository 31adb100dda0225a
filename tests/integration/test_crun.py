"""Containers of crun beside those of runc, under one manager."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests import cgroups
from tests.harness import Lighterd
from tests.images import REFERENCE

MAPS = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")


@pytest.fixture
def crun_lighterd(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    """A manager in a mount namespace without the v2 side of a hybrid tree, which crun refuses."""
    lighterd = make_lighterd()
    if os.path.ismount("/sys/fs/cgroup/unified"):
        script = 'umount /sys/fs/cgroup/unified && exec "$@"'
        lighterd.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    yield lighterd.start()


@pytest.mark.parametrize("runtime", ["crun", shutil.which("crun") or "crun is missing"])
def test_crun(crun_lighterd: Lighterd, runtime: str) -> None:
    """The runtime is a choice for each container: beside it one of runc."""
    lighterd = crun_lighterd
    lighterd.import_busybox()
    lighterd.ctl("run", "-d", REFERENCE, "of-runc", "sleep", "1000", check=True)
    flags = ("--runtime", runtime, "-m", "64m", "--pids-limit", "9", "--ulimit", "nofile=99")
    done = lighterd.ctl("run", "--rm", *flags, REFERENCE, "x", "sh", "-c", "ulimit -n; exit 7")
    assert (done.returncode, done.stdout) == (7, b"99\n"), done
    lighterd.ctl("run", "-d", *flags, REFERENCE, "x", "sleep", "1000", check=True)
    with lighterd.client() as client:
        pid = int(client.call("tasks", "get", id="x")["task"]["pid"])
        assert client.call("containers", "get", id="x")["container"]["runtime"] == runtime
    assert cgroups.memory_limit(pid) == str(64 << 20)
    assert lighterd.ctl("exec", "x", "echo", "in").stdout == b"in\n"
    lighterd.ctl("pause", "x", check=True)
    assert cgroups.is_frozen(pid)
    lighterd.ctl("resume", "x", check=True)
    os.chmod(lighterd.base, 0o711)
    done = lighterd.ctl("run", "--rm", "--runtime", runtime, *MAPS, REFERENCE, "y", "id", "-u")
    assert (done.returncode, done.stdout) == (0, b"0\n"), done
    for asked in ((), MAPS, ("--cgroupns", "private")):
        dockers = ("--runtime", runtime, "-m", "64m", *asked, "--name", "z", REFERENCE)
        done = lighterd.ctl("run", "--rm", *dockers, "sh", "-c", cgroups.SHOWN_LIMIT)
        assert done.stdout.decode().split() == [str(64 << 20)], done
    lighterd.kill9()
    lighterd.start()
    lighterd.ctl("stop", "--timeout", "1s", "x", check=True)
    done = lighterd.ctl("ps", "-a")
    assert b"Exited (137)" in done.stdout, done
    lighterd.ctl("rm", "x", check=True)
