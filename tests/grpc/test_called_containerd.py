"""In containerd's place: its name, its flags, a configuration of its version 2, its socket."""

import secrets
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from lighter.daemon.version import REVISION
from lighter.proto.version import VERSION
from tests import images
from tests.grpc.conftest import run_ctr
from tests.harness import BIN, Lighterd

# Version 2, with what the distributions' own files say beside what is used here.
CONFIG = """
version = 2
disabled_plugins = ["cri"]
oom_score = 0

[grpc]
  address = "{address}"
  uid = 0
  gid = 0

[debug]
  level = "info"

[plugins]
  [plugins."io.containerd.gc.v1.scheduler"]
    deletion_threshold = 0
    schedule_delay = "0s"

[stream_processors]
  [stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
    accepts = ["application/vnd.oci.image.layer.v1.tar+encrypted"]
    path = "ctd-decoder"

[ttrpc]
  address = ""
"""


def test_it_serves_where_containerd_does(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    link = tmp_path / "containerd"
    link.symlink_to(BIN / "lighterd")
    lighterd = make_lighterd()
    place = Path(lighterd.base) / "run"  # which a restart of the host has emptied away
    address = str(place / "containerd.sock")
    config = Path(lighterd.base) / "theirs.toml"
    config.write_text(CONFIG.format(address=address))
    # The harness names the manager's program first: it is called by the link in its place.
    lighterd.prefix = ["sh", "-c", 'shift; exec "$0" -c "$CONFIG" "$@"', str(link)]
    lighterd.start(CONFIG=str(config))
    assert stat.S_IMODE(place.stat().st_mode) == 0o711
    done = run_ctr(address, "images", "import", str(images.busybox_archive()))
    assert done.returncode == 0, done.stderr
    name = f"called-{secrets.token_hex(4)}"  # ctr's cgroups are beside those of other managers
    done = run_ctr(address, "run", "--rm", images.REFERENCE, name, "echo", "hello")
    assert done.stdout == b"hello\n", done.stderr
    assert b"key ttrpc is not known" in lighterd.log.read_bytes()
    assert b"stream_processors" not in lighterd.log.read_bytes()


def test_its_version_and_its_configuration(tmp_path: Path) -> None:
    link = tmp_path / "containerd"
    link.symlink_to(BIN / "lighterd")

    def said(*words: str) -> str:
        done = subprocess.run([str(link), *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("--version") == said("-v") == f"containerd lighter {VERSION} {REVISION}\n"
    config = tmp_path / "config.toml"
    config.write_text(said("config", "default"))
    assert said("--config", str(config), "config", "dump") == config.read_text()
    assert said("--help").startswith("Usage: containerd ")
