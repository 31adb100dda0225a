"""A private containerd of the host's package, for second opinions: its own root, state, address."""

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.harness import await_that

DEADLINE_S = 30.0


class Containerd:
    """Use as a context manager: started, and ended with its mounts and directories."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="lighter-ctrd-", dir="/var/tmp"))
        self.address = f"{self.base}/c.sock"
        config = self.base / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.base}/r"\nstate = "{self.base}/s"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.address}"\n[ttrpc]\naddress = "{self.base}/t.sock"\n'
        )
        with open(self.base / "log", "wb") as log:
            self.process = subprocess.Popen(
                # It ends with the test run, whatever ends that.
                ["setpriv", "--pdeathsig", "TERM", "containerd", "--config", str(config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> "Containerd":
        await_that(self._listens, DEADLINE_S, "containerd listens at its socket")
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.address) == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.base)], check=False)

    def ctr(self, *words: str, data: bytes | None = None) -> bytes:
        """Run ctr; returns its output. Raises AssertionError with its complaint."""
        done = subprocess.run(
            ["ctr", "--address", self.address, *words],
            input=data,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout

    def refuses(self, *words: str, data: bytes | None = None) -> bool:
        """Whether ctr fails."""
        try:
            self.ctr(*words, data=data)
        except AssertionError:
            return True
        return False

    @contextmanager
    def mounted(self, image: str, where: Path) -> Iterator[Path]:
        """The tree of an image that was unpacked."""
        where.mkdir()
        self.ctr("images", "mount", image, str(where))
        try:
            yield where
        finally:
            self.ctr("images", "unmount", "--rm", str(where))
            where.rmdir()
