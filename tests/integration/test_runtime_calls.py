"""Which of the runtime's verbs are run for a life, and which a shim does without it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Lighterd

NOTES = """#!/bin/bash
# As runc; notes the verb, which stands behind --root DIR --log FILE --log-format json.
echo "$7" >>"$(dirname "$0")/verbs"
exec {runc} "$@"
"""


@pytest.fixture
def noting(tmp_path: Path) -> Path:
    """A program of root's, called runc, that notes what it is asked for."""
    real = shutil.which("runc")
    assert real, "runc is not installed"
    program = tmp_path / "bin" / "runc"
    program.parent.mkdir()
    program.write_text(NOTES.format(runc=real))
    program.chmod(0o755)
    return program


def live(lighterd: Lighterd, *flags: str) -> None:
    image = lighterd.import_busybox()
    done = lighterd.ctl("run", "--rm", *flags, image, "c", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n"), done.stderr


def verbs(program: Path) -> list[str]:
    return (program.parent / "verbs").read_text().split()


def test_the_hosts_own_runc_is_run_for_the_create_alone(
    make_lighterd: Callable[..., Lighterd], noting: Path
) -> None:
    path = f"{noting.parent}:{os.environ['PATH']}"
    live(make_lighterd().start(PATH=path))
    assert verbs(noting) == ["create"]


def test_a_program_that_is_named_is_run_for_the_start_too(
    make_lighterd: Callable[..., Lighterd], noting: Path
) -> None:
    """It may be one around runc, which does something of its own."""
    config = f'version = 3\n[plugins."io.lighter.v1".runtimes.runc]\npath = "{noting}"\n'
    live(make_lighterd(config=config).start())
    assert verbs(noting) == ["create", "start"]


def test_a_program_that_a_container_names_is_run_for_the_start_too(
    make_lighterd: Callable[..., Lighterd], noting: Path
) -> None:
    live(make_lighterd().start(), "--runtime", str(noting))
    assert verbs(noting) == ["create", "start"]


HOOK = """\
cdiVersion: 0.6.0
kind: lighter.example/hook
devices:
- name: one
  containerEdits:
    hooks:
    - hookName: poststart
      path: /bin/touch
      args: [touch, {called}]
"""


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Path]:
    """What a device with a hook at the start makes."""
    called = tmp_path / "called"
    file = Path("/etc/cdi/lighter-test-hook.yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_text(HOOK.format(called=called))
    file.chmod(0o644)
    yield called
    file.unlink()


def test_a_hook_at_the_start_is_the_runtimes(
    make_lighterd: Callable[..., Lighterd], noting: Path, hook: Path
) -> None:
    """runc runs it in its create or, from 1.2 on, in its start."""
    path = f"{noting.parent}:{os.environ['PATH']}"
    live(make_lighterd().start(PATH=path), "--device", "lighter.example/hook=one")
    assert verbs(noting) == ["create", "start"]
    assert hook.exists()
