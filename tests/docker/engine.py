"""A dockerd of Debian's on a manager of the test's own, and its docker."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import images
from tests.docker.enclosure import Enclosure
from tests.harness import Lighterd, await_that, settled

START_S = 60.0
STOP_S = 60.0
IMAGE = images.REFERENCE.removeprefix("docker.io/library/")
UNPACKED = Path(__file__).resolve().parents[2] / ".cache" / "docker"
_PLUGINS = UNPACKED / "buildx/usr/libexec/docker/cli-plugins"

Done = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True)
class Variant:
    """A release of Debian's, and whether the manager keeps its images (from Docker 23 on)."""

    release: str
    snapshotter: bool


VARIANTS = {
    "20.10": Variant("20.10", False),
    "26": Variant("26.1", False),
    "26-snapshotter": Variant("26.1", True),
}


class Engine:
    """`release` is one that .ci/docker fetches; with `snapshotter`, images are the manager's too.

    All directories are below the enclosure's, so is every path in what it runs.
    """

    def __init__(
        self, enclosure: Enclosure, address: str, release: str, *, snapshotter: bool
    ) -> None:
        unpacked = UNPACKED / release
        assert (unpacked / "usr/sbin/dockerd").exists(), f"{unpacked} is missing: .ci/docker"
        self.calm: set[str] = set()  # ids that were ended while nobody was away
        self.enclosure = enclosure
        self.release = release
        self.snapshotter = snapshotter
        base = enclosure.base
        self.log = base / "dockerd.log"
        self.cgroup = base.name
        self.socket = base / "docker.sock"
        path = f"{unpacked}/usr/sbin:{unpacked}/usr/bin:{os.environ['PATH']}"
        self._environ = {
            **os.environ,
            "PATH": path,
            "DOCKER_CONFIG": str(base),
            "DOCKER_BUILDKIT": "0",
        }
        (base / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(_PLUGINS)]}))
        self._docker = str(unpacked / "usr/bin/docker")
        config = base / "daemon.json"
        config.write_text(json.dumps({"features": {"containerd-snapshotter": snapshotter}}))
        self._argv = [
            *enclosure.prefix,
            # It ends with the test run, whatever ends that.
            *("setpriv", "--pdeathsig", "KILL"),
            *("dockerd", "--debug", "--containerd", address, "--config-file", str(config)),
            *("--data-root", f"{base}/data", "--exec-root", f"{base}/exec"),
            *("--pidfile", f"{base}/docker.pid", "--host", f"unix://{self.socket}"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.cgroup}"),
            *(() if snapshotter else ("--storage-driver", "overlay2")),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    # -- dockerd

    def start(self, *, live_restore: bool = True) -> "Engine":
        argv = [*self._argv, *(("--live-restore",) if live_restore else ())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        await_that(self._answers, START_S, "dockerd serves")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"dockerd ended\n{self.log_end()}"
        return self.docker("version").returncode == 0

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(STOP_S)

    def kill9(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log_end(self, size_bytes: int = 6000) -> str:
        return self.log.read_text(errors="replace")[-size_bytes:]

    def clear(self) -> None:
        """Remove all containers."""
        ids = self.docker("ps", "-aq", check=True).stdout.decode().split()
        if ids:
            self.docker("rm", "-fv", *ids, check=True)
        for path in self.cgroups():
            if path.name == "buildkit":  # it keeps the parent of its steps' cgroups
                _rmdir(path)

    def close(self) -> None:
        """Remove all containers and end. Raises AssertionError for what they left behind."""
        self.clear()
        self.stop()
        # A process of one may still be dying.
        settled(lambda: [str(path) for path in self.cgroups() if not _rmdir(path)])

    def cgroups(self) -> Iterator[Path]:
        """The directories of this engine's containers in all hierarchies, children first."""
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            top = hierarchy / self.cgroup
            for path, _, _ in os.walk(top, topdown=False):
                yield Path(path)

    # -- docker

    def docker_argv(self, *words: str) -> list[str]:
        return [self._docker, "--host", f"unix://{self.socket}", *words]

    def docker(
        self,
        *words: str,
        input: bytes | None = None,  # noqa: A002 (subprocess.run's word)
        timeout: float = 60,
        check: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run docker; `check` turns a failure into an assertion with its complaint."""
        done = subprocess.run(
            self.docker_argv(*words),
            env={**self._environ, **(env or {})},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr.decode()}"
        return done

    def says(self, *words: str, timeout: float = 60) -> str:
        """What docker prints, stripped; it must not fail."""
        return self.docker(*words, check=True, timeout=timeout).stdout.decode().strip()

    def popen(self, *words: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self.docker_argv(*words),
            env={**self._environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *words: str) -> str:
        """`docker run -d`; the container's id."""
        return self.says("run", "-d", *words)

    def state(self, container: str) -> Any:
        """`State` of docker inspect."""
        return json.loads(self.says("inspect", "--format", "{{json .State}}", container))

    def await_state(self, container: str, timeout_s: float = 30, **wanted: object) -> Any:
        """Poll until the container's state has these values; returns it."""
        await_that(
            lambda: wanted.items() <= self.state(container).items(),
            timeout_s,
            f"{container} is {wanted}: {self.state(container)}",
        )
        return self.state(container)


def _rmdir(path: Path) -> bool:
    """Whether it is gone; who was its last may have removed it. False when something is in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def load_image(engine: Engine, lighterd: Lighterd) -> None:
    """The test image, through an archive that `ctl` exports."""
    archive = engine.enclosure.base / "image.tar"
    reference = lighterd.import_busybox()
    lighterd.ctl("images", "export", "--all-platforms", str(archive), reference, check=True)
    engine.docker("load", "-i", str(archive), check=True)
    archive.unlink()
