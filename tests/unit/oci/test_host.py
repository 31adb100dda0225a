"""Facts read from the machine that the tests run on."""

import os
import stat
from pathlib import Path

import pytest

from lighter.daemon.oci.capabilities import ALL
from lighter.daemon.oci.host import NETWORK_FILES, read_device, read_devices, read_host


def test_read_host() -> None:
    host = read_host()
    assert (host.hostname, host.arch) == (os.uname().nodename, os.uname().machine)
    assert set(host.capabilities) <= set(ALL)
    assert ("CAP_CHOWN" in host.capabilities) == (os.geteuid() == 0)
    assert set(host.network_files) <= set(NETWORK_FILES)
    assert all(Path(path).is_dir() for path in host.thermal_throttle_dirs)


def test_read_device() -> None:
    device = read_device("/dev/null")
    mode = stat.S_IMODE(os.stat("/dev/null").st_mode)
    assert device | {"uid": 0, "gid": 0} == {
        "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": mode,
        "uid": 0, "gid": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="neither"):
        read_device("/etc")


def test_devices_of_the_host_are_devices_and_not_a_container_s_own() -> None:
    paths = {device["path"] for device in read_devices()}
    assert {"/dev/null", "/dev/zero"} <= paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/", "/dev/fd/")) for path in paths)
    assert "/dev/console" not in paths
