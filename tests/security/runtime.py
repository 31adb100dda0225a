"""A real runc or crun on a bundle in a scratch directory: what a spec does, seen from inside."""

import itertools
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.images import busybox_archive

TIMEOUT_S = 60
# crun 1.8 refuses a hybrid tree of cgroups, so it gets a mount namespace without the v2 side.
_WITHOUT_UNIFIED = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
_numbers = itertools.count()


def unpack_busybox(target: Path) -> None:
    """Unpack the test image's one layer; the archive is our own, so its names are trusted."""
    with tarfile.open(busybox_archive()) as archive:

        def blob(descriptor: Mapping[str, Any]) -> bytes:
            name = "blobs/sha256/" + descriptor["digest"].partition(":")[2]
            reader = archive.extractfile(name)
            assert reader is not None
            return reader.read()

        index = archive.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.loads(index.read())["manifests"][0]))
        layer = blob(manifest["layers"][0])
    subprocess.run(["tar", "-x", "-C", str(target)], input=layer, check=True)


class Runtime:
    """A runtime with a root of its own. `rootfs` is shared by the containers of one test module."""

    def __init__(self, scratch: Path, rootfs: Path, program: str = "runc") -> None:
        self._scratch = scratch
        self._program = program
        self.rootfs = rootfs

    def with_program(self, program: str) -> "Runtime":
        return Runtime(self._scratch, self.rootfs, program)

    def cgroup(self) -> str:
        """A cgroup path that no one else uses; runc removes it with the container."""
        return f"/lighter-test-spec-{os.getpid()}-{next(_numbers)}"

    def run(
        self, spec: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end and take its output; `env` is the runtime's own."""
        with self._bundle(spec) as (name, bundle):
            return self._runc("run", "--bundle", str(bundle), name, env=env)

    @contextmanager
    def running(self, spec: Mapping[str, Any]) -> Iterator[str]:
        """A detached container, for the time of the block; its output is dropped."""
        with self._bundle(spec) as (name, bundle):
            argv = [*self._argv("run", "--detach", "--bundle", str(bundle), name)]
            null = subprocess.DEVNULL
            subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=True)
            yield name

    def exec(self, name: str, process: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        path = self._scratch / f"{name}-exec-{next(_numbers)}.json"
        path.write_text(json.dumps(process))
        return self._runc("exec", "--process", str(path), name)

    @contextmanager
    def _bundle(self, spec: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
        name = f"c{next(_numbers)}"
        bundle = self._scratch / name
        bundle.mkdir()
        config = {**spec, "root": {**spec["root"], "path": str(self.rootfs)}}
        (bundle / "config.json").write_text(json.dumps(config))
        try:
            yield name, bundle
        finally:
            self._runc("delete", "--force", name)

    def _argv(self, *arguments: str) -> list[str]:
        argv = [self._program, "--root", str(self._scratch / self._program), *arguments]
        if self._program == "crun":
            return ["unshare", "--mount", "sh", "-c", _WITHOUT_UNIFIED, "sh", *argv]
        return argv

    def _runc(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._argv(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={"PATH": os.environ["PATH"], **(env or {})},
            check=False,
        )
