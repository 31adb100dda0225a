"""What the runtime takes alone: the limit under which no manager of it can go."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL
from types import TracebackType
from typing import Any

from measure import CommandFailed, mounts_below, run, undisturbed
from peer import RUNC, image_archive


class Limit:
    """A bundle of the test image on a plain directory, run by `runtime` without any manager."""

    name = "runc"  # the column; its heading says that it is the runtime

    def __init__(self, runtime: str = RUNC) -> None:
        self.runtime = runtime
        self.binary = shutil.which(runtime) or f"/usr/sbin/{runtime}"
        self.base = Path(tempfile.mkdtemp(prefix="lighter-bench-", dir="/tmp"))
        self._runc = [runtime, "--root", f"{self.base}/state"]

    def __enter__(self) -> "Limit":
        try:
            self._unpack()
        except BaseException:
            shutil.rmtree(self.base)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            with suppress(CommandFailed):
                for name in run([*self._runc, "list", "--quiet"]).split():
                    with suppress(CommandFailed):
                        self.remove(name)
            for point in mounts_below(self.base):
                subprocess.run(["umount", "-l", point], check=False)
            shutil.rmtree(self.base, ignore_errors=True)

    def run_argv(self, container: str) -> list[str]:
        return [*self._runc, "run", "--bundle", f"{self.base}/true", container]

    def detach(self, container: str) -> None:
        # The container keeps runc's stdout, so it must not be a pipe that is read to its end.
        argv = [*self._runc, "run", "--detach", "--bundle", f"{self.base}/sleep", container]
        subprocess.run(argv, check=True, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)

    def exec_argv(self, container: str) -> list[str]:
        return [*self._runc, "exec", container, "true"]

    def remove(self, container: str) -> None:
        run([*self._runc, "delete", "--force", container])

    def _unpack(self) -> None:
        """The image's one layer into a rootfs that both bundles share."""
        rootfs = self.base / "rootfs"
        with tarfile.open(image_archive()) as archive:

            def blob(digest: str) -> bytes:
                member = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
                assert member is not None
                return member.read()

            index = archive.extractfile("index.json")
            assert index is not None
            manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
            layer = self.base / "layer.tar"
            layer.write_bytes(blob(manifest["layers"][0]["digest"]))
        rootfs.mkdir()
        run(["tar", "--extract", "--file", str(layer), "--directory", str(rootfs)])
        for name, args in (("true", ["true"]), ("sleep", ["sleep", "100000"])):
            bundle = self.base / name
            bundle.mkdir()
            run(["runc", "spec", "--bundle", str(bundle)])
            spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
            spec["process"].update(terminal=False, args=args)
            spec["root"] = {"path": str(rootfs), "readonly": False}
            spec["linux"]["cgroupsPath"] = f"/{self.base.name}-{name}"
            (bundle / "config.json").write_text(json.dumps(spec))
