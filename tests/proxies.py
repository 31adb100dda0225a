"""A snapshotter plugin (fakes/proxy.py) that a test starts, spoils, stops and starts again."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("fakes") / "proxy.py"


class Proxy:
    """`dir`: what it has; `address`: its socket. Both stay when it is stopped."""

    def __init__(self, base: Path) -> None:
        self.dir = base / "plugin"
        self.dir.mkdir(mode=0o700)
        self.address = str(base / "plugin.sock")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "Proxy":
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), self.address, str(self.dir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def kill(self) -> None:
        """It dies; its socket's file stays."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def has(self) -> list[str]:
        """What it has, without what the manager puts before it."""
        index = self.dir / "index.json"
        keys = json.loads(index.read_text()) if index.exists() else {}
        return sorted(key.partition("/")[2] for key in keys)

    def calls(self) -> list[list[str]]:
        """(method, namespace, key) of each."""
        path = self.dir / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
