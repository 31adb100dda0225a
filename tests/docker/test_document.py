"""docs/docker.md as it is written: its drop-in's command, daemon.json, commands in order."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import census
from tests.docker.enclosure import Enclosure
from tests.docker.engine import START_S, STOP_S, UNPACKED
from tests.harness import BIN, Lighterd, await_that

PAGE = Path(__file__).resolve().parents[2] / "docs" / "docker.md"
CGROUP = "lighter-docker-document"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


class Reader:
    """Does what the page says, within an enclosure; systemd's part is played by the test."""

    def __init__(self, enclosure: Enclosure, lighterd: Lighterd) -> None:
        self.enclosure = enclosure
        self.lighterd = lighterd
        self.dockerd: subprocess.Popen[bytes] | None = None
        base = enclosure.base
        programs = UNPACKED / "26.1"
        places = [f"{programs}/usr/sbin", f"{programs}/usr/bin", str(BIN), os.environ["PATH"]]
        self.environ = {
            **os.environ,
            "PATH": ":".join(places),
            "DOCKER_CONFIG": str(base),
            # As /etc/default/docker would have it: away from this host's own directories.
            "DOCKER_OPTS": f"--data-root {base}/data --exec-root {base}/exec "
            f"--cgroup-parent /{CGROUP} -H unix:///run/docker.sock",
        }
        (exec_start,) = re.findall(r"^ExecStart=(.+)$", _blocks("ini")[0], re.MULTILINE)
        # The socket is systemd's to give; the program's place is another one here.
        words = exec_start.removeprefix("/usr/sbin/").replace("-H fd:// ", "")
        self.start = f"exec setpriv --pdeathsig KILL {words}"

    def sh(self, script: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.enclosure.prefix, "sh", "-c", f"cd {self.enclosure.base}; {script}"],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    def systemctl(self, command: str) -> None:
        if command == "restart lighterd":
            self.lighterd.restart()
        elif command == "restart docker":
            self.stop()
            with open(self.enclosure.base / "dockerd.log", "ab") as log:
                self.dockerd = subprocess.Popen(
                    [*self.enclosure.prefix, "sh", "-c", self.start],
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        else:
            assert command in ("mask --now containerd", "daemon-reload"), command
            return
        if self.dockerd is not None:
            # "docker top" of what runs needs the manager as well.
            ask = "docker version && for id in $(docker ps -q); do docker top $id || exit 1; done"
            await_that(lambda: self.sh(ask).returncode == 0, START_S, "dockerd serves")

    def stop(self) -> None:
        if self.dockerd is not None:
            self.dockerd.terminate()
            self.dockerd.wait(STOP_S)

    def follow(self, block: str) -> None:
        """Each `# command`, and the lines it prints, in which `…` stands for anything."""
        for step in re.split(r"^# ", block, flags=re.MULTILINE)[1:]:
            command, *wanted = step.splitlines()
            if command.startswith("systemctl "):
                self.systemctl(command.removeprefix("systemctl "))
                continue
            done = self.sh(command)
            refused = bool(wanted) and wanted[0].startswith("ctl: ")
            assert (done.returncode != 0) == refused, f"{command}: {done.stdout}"
            printed = done.stdout.splitlines()
            assert len(printed) == len(wanted), (command, printed)
            for line, pattern in zip(printed, wanted, strict=True):
                words = ".*".join(map(re.escape, pattern.split("…")))
                assert re.fullmatch(words, line), (command, line, pattern)


@pytest.mark.timeout(240)
def test_the_page_is_true() -> None:
    enclosure = Enclosure()
    lighterd = Lighterd(census.Owners())
    lighterd.prefix = enclosure.prefix
    lighterd.resumes = True  # Docker goes on with what it has begun
    reader = Reader(enclosure, lighterd)
    lighterd.start()
    try:
        reference = lighterd.import_busybox()
        archive = str(enclosure.base / "image.tar")
        lighterd.ctl("images", "export", "--all-platforms", archive, reference, check=True)
        reader.sh(f"ln -s {lighterd.state} /run/lighter")
        settings = _blocks("json")[0]
        reader.sh(f"mkdir -p /etc/docker && echo '{settings}' >/etc/docker/daemon.json")
        for block in _blocks("console"):
            reader.follow(block)
    finally:
        reader.sh("docker rm -f $(docker ps -aq)")
        reader.stop()
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            if (hierarchy / CGROUP).exists():
                (hierarchy / CGROUP).rmdir()
        try:
            lighterd.close()
        finally:
            enclosure.close()
