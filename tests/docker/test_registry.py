"""docker push and pull, by dockerd itself, into the manager's content."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.enclosure import Enclosure
from tests.docker.engine import IMAGE, Engine
from tests.harness import Lighterd, await_that

PORT = 5000
NAME = f"127.0.0.1:{PORT}/ships/barge:1"


@pytest.fixture
def registry(enclosure: Enclosure, tmp_path: Path) -> Iterator[str]:
    """Debian's, on the enclosure's own loopback address, which Docker takes without TLS."""
    program = shutil.which("docker-registry")
    assert program, "install docker-registry"
    config = tmp_path / "config.yml"
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}},
        "http": {"addr": f"127.0.0.1:{PORT}"},
    }
    config.write_text(json.dumps(settings))  # YAML holds JSON
    process = subprocess.Popen(
        [*enclosure.prefix, "setpriv", "--pdeathsig", "KILL", program, "serve", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OTEL_TRACES_EXPORTER": "none"},
    )
    probe = ("busybox", "wget", "-qO-", f"http://127.0.0.1:{PORT}/v2/")
    try:
        await_that(lambda: enclosure.run(*probe).returncode == 0, 30, "the registry serves")
        yield NAME
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("host", ["26-snapshotter"], indirect=True)
def test_what_is_pushed_is_pulled_again(engine: Engine, lighterd: Lighterd, registry: str) -> None:
    recipe = f"FROM {IMAGE}\nRUN echo laden >/cargo\n".encode()
    engine.docker("build", "-t", registry, "-", input=recipe, check=True)
    engine.says("push", registry)
    engine.says("rmi", registry)
    assert "Downloaded newer image" in engine.says("pull", registry)
    assert engine.says("run", "--rm", registry, "cat", "/cargo") == "laden"
    done = lighterd.ctl("-n", "moby", "run", "--rm", registry, "ours", "cat", "/cargo")
    assert done.stdout == b"laden\n", done.stderr
    engine.says("rmi", registry)
    assert engine.says("pull", "-q", registry) == registry
    engine.says("rmi", registry)
