"""Containers on snapshots of a plugin's (`[proxy_plugins]`), by ctl and by ctr."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lighter.daemon.grpc.pb import snapshots_pb2
from tests import images
from tests.grpc.conftest import run_ctr
from tests.grpc.space import Space, refused
from tests.harness import Lighterd, await_that
from tests.integration.test_snapshots import busybox_layer, image_file
from tests.proxies import Proxy
from tests.security.images import FILE, archive, entry

NAME = "docker.io/library/layered:1"
DEADLINE_S = 30.0


# Named before the manager by tests: it is there until the manager has swept.
@pytest.fixture
def proxy() -> Iterator[Proxy]:
    base = Path(tempfile.mkdtemp(prefix="lighter-", dir="/var/tmp"))
    proxy = Proxy(base).start()
    yield proxy
    proxy.kill()
    shutil.rmtree(base)


def config(proxy: Proxy) -> str:
    return f'[proxy_plugins.plugged]\ntype = "snapshot"\naddress = "{proxy.address}"\n'


@pytest.fixture
def manager(proxy: Proxy, make_lighterd: Callable[..., Lighterd]) -> Lighterd:
    return make_lighterd(config=config(proxy)).start()


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Three layers, the last of which removes what the one below has."""
    layers = [
        busybox_layer(),
        archive(entry("gone", FILE, b"x"), entry("kept", FILE, b"x")),
        archive(entry(".wh.gone"), entry("new", FILE, b"x")),
    ]
    return image_file(tmp_path / "image", layers, NAME)


def test_ctl_runs_on_a_plugins_snapshots(proxy: Proxy, manager: Lighterd, image: str) -> None:
    on_it = ("--snapshotter", "plugged")
    manager.ctl("images", "import", *on_it, image, check=True)
    assert proxy.has() == ["1c", "2c", "3c"]
    done = manager.ctl("run", "--rm", *on_it, NAME, "x", "/bin/busybox", "ls", "/")
    assert done.returncode == 0, done.stderr
    seen = set(done.stdout.decode().split())
    assert {"bin", "kept", "new"} <= seen and "gone" not in seen
    await_that(lambda: proxy.has() == ["1c", "2c", "3c"], DEADLINE_S, "its root is removed")
    used = manager.ctl("snapshots", *on_it, "usage", check=True).stdout.decode()
    assert "MiB" in used or "MB" in used
    done = manager.ctl("system", "check", "--repair")
    assert done.returncode == 0, done.stdout
    assert proxy.has() == ["1c", "2c", "3c"], "which has no directories here to be missed"
    manager.restart()
    done = manager.ctl("run", "--rm", *on_it, NAME, "x", "/bin/busybox", "cat", "/kept")
    assert done.stdout == b"x", done.stderr
    manager.ctl("images", "rm", NAME, check=True)
    await_that(lambda: not proxy.has(), DEADLINE_S, "the plugin's snapshots go with the image")


def test_ctr_runs_on_a_plugins_snapshots(proxy: Proxy, manager: Lighterd) -> None:
    """It unpacks by itself: it applies layers to mounts that it was given."""
    on_it = ("--snapshotter", "plugged")
    path = str(images.busybox_archive())
    done = run_ctr(manager.grpc_address, "images", "import", *on_it, path)
    assert done.returncode == 0, done.stderr
    assert proxy.has() == ["1c"]
    name = f"plugged-{secrets.token_hex(4)}"
    words = ("run", "--rm", *on_it, images.REFERENCE, name, "echo", "hello")
    done = run_ctr(manager.grpc_address, *words)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    done = run_ctr(manager.grpc_address, "snapshots", *on_it, "ls")
    assert b"Committed" in done.stdout


def test_a_client_need_not_unpack_what_the_plugin_has(proxy: Proxy, manager: Lighterd) -> None:
    (proxy.dir / "remote").touch()
    base = "sha256:" + 64 * "a"
    with Space(manager, "default") as space:
        on_it = {"snapshotter": "plugged"}
        labels = {"containerd.io/snapshot.ref": base}
        with refused("ALREADY_EXISTS"):
            space.snapshots("Prepare", key=f"extract-1 {base}", labels=labels, **on_it)
        assert space.snapshots("Stat", key=base, **on_it).info.kind == snapshots_pb2.COMMITTED
        space.collect()
        assert proxy.has() == ["1c"], "the client's lease holds it"
    await_that(lambda: not proxy.has(), DEADLINE_S, "it goes with the lease")


def test_a_dead_plugin_holds_up_no_start_and_no_other_snapshotter(
    proxy: Proxy, make_lighterd: Callable[..., Lighterd], image: str
) -> None:
    proxy.kill()
    lighterd = make_lighterd(config=config(proxy)).start()
    lighterd.ctl("images", "import", image, check=True)
    done = lighterd.ctl("run", "--rm", NAME, "x", "/bin/busybox", "cat", "/new")
    assert done.stdout == b"x", done.stderr
    done = lighterd.ctl(
        "run", "--rm", "--snapshotter", "plugged", NAME, "x", "/bin/busybox", "true"
    )
    assert done.returncode == 125
    assert f"of snapshotter plugin plugged at {proxy.address}" in done.stderr.decode()
    Path(proxy.address).unlink()
    shown = run_ctr(lighterd.grpc_address, "plugins", "ls").stdout.decode()
    (line,) = [line for line in shown.splitlines() if "plugged" in line]
    assert line.split()[-1] == "skip"
    proxy.start()
    done = lighterd.ctl(
        "run", "--rm", "--snapshotter", "plugged", NAME, "x", "/bin/busybox", "true"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("point", ["snapshot.proxied", "snapshot.proxy-committed"])
def test_a_manager_that_is_killed_goes_on_with_a_plugin(
    proxy: Proxy, make_lighterd: Callable[..., Lighterd], image: str, point: str
) -> None:
    lighterd = make_lighterd(config=config(proxy)).start(FAULT=f"{point}:abort")
    words = ("images", "import", "--snapshotter", "plugged", image)
    assert lighterd.ctl(*words).returncode != 0
    lighterd.restart()
    await_that(lambda: not proxy.has(), DEADLINE_S, "what was half made is removed")
    lighterd.ctl(*words, check=True)
    assert len(proxy.has()) == 3
