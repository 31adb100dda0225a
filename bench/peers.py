"""The two that are measured against each other.

The settings are the same on both sides: the same runc, the same image, overlayfs, no seccomp
filter (ctr's default), no network, no log of the output (ctr keeps none).
"""

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from measure import run, seconds, titles, until
from peer import REFERENCE, RUNC, START_S, Peer, asked, image_archive

from lighter.ctl.connect import Manager  # type: ignore[import-untyped]

CONNECT_S = 60


class Containerd(Peer):
    """The host's containerd and ctr."""

    name = "containerd"

    def __init__(self, parent_dir: str = "/tmp", runtime: str = RUNC) -> None:
        super().__init__(parent_dir, runtime)
        self.api_address = self.address = f"{self.base}/c.sock"
        (self.base / "config.toml").write_text(
            f'version = 2\nroot = "{self.base}/r"\nstate = "{self.base}/s"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.address}"\n'
        )

    def client(self, *words: str) -> list[str]:
        return ["ctr", "--address", self.address, "--namespace", self.namespace, *words]

    def run_options(self) -> list[str]:
        return [] if self.runtime == RUNC else ["--runc-binary", self.runtime]

    def import_image(self) -> None:
        run(self.client("images", "import", image_archive()))

    def version_text(self) -> str:
        return run(["containerd", "--version"]).strip()

    def monitors(self) -> list[int]:
        return [
            pid
            for pid, title in titles().items()
            if "containerd-shim" in title and self.address in title
        ]

    def _manager_argv(self) -> list[str]:
        return ["containerd", "--config", f"{self.base}/config.toml"]

    def _cgroup_tops(self) -> list[str]:
        return [self.namespace]


class Lighter(Peer):
    """What is installed beside this interpreter, by the launchers that the package has.

    What pip makes in their place loads `site` and `re` first, which takes 9 ms.
    """

    name = "lighter"

    def __init__(self, parent_dir: str = "/tmp", runtime: str = RUNC) -> None:
        super().__init__(parent_dir, runtime)
        self.api_address = f"{self.base}/s/containerd.sock"
        self.instance = sha256(f"{self.base}/r".encode()).hexdigest()[:8]
        core = packaged_core(self.base)
        self._ctl, self._lighterd = f"{core}/ctl", f"{core}/lighterd"

    def client(self, *words: str) -> list[str]:
        address = f"{self.base}/s/lighter.sock"
        return [self._ctl, "--address", address, "--namespace", self.namespace, *words]

    def run_options(self) -> list[str]:
        return [*self._options(), "--log-driver", "none"]

    def _options(self) -> list[str]:
        chosen = [] if self.runtime == RUNC else ["--runtime", self.runtime]
        return ["--seccomp-profile", "unconfined", *chosen]

    def logging_argv(self, container: str) -> list[str]:
        """Start one whose log is turned over some times, and which then does nothing."""
        limits = ["--log-max-size", "64k", "--log-max-file", "2"]
        words = ["sh", "-c", "seq 1 40000; exec sleep 100000"]
        return self.client("run", "-d", *self._options(), *limits, REFERENCE, container, *words)

    def has_turned_log(self, container: str) -> bool:
        logs = Path(f"{self.base}/r/logs/{self.namespace}/{container}")
        return len(list(logs.glob("*.log"))) > 1

    def import_image(self) -> None:
        run(self.client("images", "import", image_archive()))

    def version_text(self) -> str:
        return run([self._lighterd, "--version"]).strip()

    def monitors(self) -> list[int]:
        title = f"lighter-shim --instance {self.instance}"
        return [pid for pid, shown in titles().items() if shown.startswith(title)]

    def shims(self) -> set[int]:
        """Pids of the monitors, and of the one that is ready before it is asked for."""
        titled = tuple(f"lighter-{kind} --instance {self.instance}" for kind in ("shim", "spare"))
        return {pid for pid, shown in titles().items() if shown.startswith(titled)}

    def shared(self) -> list[int]:
        """Pids of what shims come from: the spawner, and the next shim."""
        titled = tuple(
            f"lighter-{kind} --instance {self.instance}" for kind in ("spawner", "spare")
        )
        return [pid for pid, shown in titles().items() if shown.startswith(titled)]

    def _manager_argv(self) -> list[str]:
        return [self._lighterd, "--root", f"{self.base}/r", "--state", f"{self.base}/s"]

    def adopted(self) -> int:
        """How many shims are connected; 0 while it does not answer."""
        done = asked(self.client("--format", "json", "system", "info"))
        return int(json.loads(done.stdout)["shims"]) if done.returncode == 0 else 0

    def restart(self, shims: int) -> None:
        """`kill -9` of the manager, and a new one; returns when it has this many shims."""
        self.kill9()
        self.launch()
        client = self.connected()
        try:
            until(
                lambda: client.call("system.health")["shims"] == shims,
                START_S,
                f"{shims} shims are connected again",
            )
        finally:
            client.close()

    def seconds_of_lists(self, times: int) -> Iterator[float]:
        """What `tasks ls` takes from request to answer, without a command's start."""
        client = self.connected()
        try:
            for _ in range(times):
                yield seconds(lambda: client.call("tasks.list"))
        finally:
            client.close()

    def connected(self) -> Manager:
        """A client as `ctl` has one, in this process. The caller closes it."""
        address = f"{self.base}/s/lighter.sock"
        return Manager(address, self.namespace, connect_timeout_s=CONNECT_S)

    def _marks(self) -> list[str]:
        return [*super()._marks(), f"--instance {self.instance} "]

    def _cgroup_tops(self) -> list[str]:
        # The namespace is what ctr puts into a spec.
        return [f"lighter/{self.instance}", f"lighter-shims/{self.instance}", self.namespace]


def packaged_core(base: Path) -> Path:
    """A directory as the package makes for one version, of what this interpreter has."""
    core = base / "cores" / "0"
    python = os.path.realpath(sys.executable)
    # A directory of its own, for the spawner's launcher looks for `site/../python3`.
    (core / "site").mkdir(parents=True)
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        (core / "site" / package.name).symlink_to(package)
    (core / "python3").symlink_to(python)
    words = {
        "@PYTHON@": python,
        "@CORE@": str(core),
        "@CORES@": str(core.parent),
        "@SPAWNER@": str(core / "lighter-spawner"),
    }
    templates = Path(__file__).resolve().parent.parent / "packaging" / "rpm" / "launchers"
    for template in templates.glob("*.in"):
        text = template.read_text()
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        (core / template.stem).write_text(text)
        (core / template.stem).chmod(0o755)
    return core


def available() -> list[type[Peer]]:
    """Those that can be measured on this host; the report says which one is missing."""
    peers: list[type[Peer]] = []
    if shutil.which("containerd") and shutil.which("ctr"):
        peers.append(Containerd)
    return [*peers, Lighter]
