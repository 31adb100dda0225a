"""Which of the runtime's verbs are run for a life, and which a shim does without it."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Lighterd

NOTES = """#!/bin/bash
# As runc; notes the verb, which stands behind --root DIR --log FILE --log-format json, and what all
# it is given.
echo "$7" >>"$(dirname "$0")/verbs"
echo "$@" >>"$(dirname "$0")/words"
env >>"$(dirname "$0")/words"
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


TIRED = """#!/bin/sh
# As runc, but for these verbs.
case "$7" in
pause|update) echo '{{"level": "error", "msg": "it is tired"}}' >"$4"; exit 1;;
esac
exec {runc} "$@"
"""


def test_what_a_runtime_says_stands_behind_what_was_asked(
    lighterd: Lighterd, busybox: str, tmp_path: Path
) -> None:
    """In our words for whom we talk to, in containerd's for its clients; neither names runc."""
    program = tmp_path / "tired"
    program.write_text(TIRED.format(runc=shutil.which("runc")))
    program.chmod(0o755)
    lighterd.ctl("run", "-d", "--runtime", str(program), busybox, "c", "sleep", "1000", check=True)
    for words in (("pause", "c"), ("update", "-m", "64m", "c")):
        said = lighterd.ctl(*words).stderr.decode()
        assert f"{words[0]} task c: it is tired\n" in said and "runc" not in said
    missing = lighterd.ctl("exec", "c", "/no/such")
    assert missing.returncode == 127
    assert missing.stderr.startswith(b"ctl: exec in task c: ")
    ctr = ["ctr", "--address", lighterd.grpc_address, "-n", "default", "tasks", "pause", "c"]
    done = subprocess.run(ctr, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.stderr == b"ctr: OCI runtime pause failed: it is tired: unknown\n"


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


def test_sec_77_no_secret_is_in_the_runtimes_arguments_environment_or_log(
    make_lighterd: Callable[..., Lighterd], noting: Path
) -> None:
    """What a container is given stands in files that root alone reads; a failure quotes none."""
    path = f"{noting.parent}:{os.environ['PATH']}"
    lighterd = make_lighterd().start(PATH=path)
    image, secret = lighterd.import_busybox(), "hunter2-of-a-test"
    given = ("-e", f"PASSWORD={secret}")
    lighterd.ctl("run", "-d", *given, image, "c", "sleep", "1000", check=True)
    shown = lighterd.ctl("exec", "-e", f"MORE={secret}", "c", "env", check=True).stdout.decode()
    assert shown.count(secret) == 2
    failed = lighterd.ctl("exec", "-e", f"MORE={secret}", "c", "/nothing")
    assert failed.returncode == 127
    refused = lighterd.ctl("run", "--rm", *given, image, "d", "/nothing")
    assert refused.returncode == 127
    texts = {
        "the runtime's words": (noting.parent / "words").read_text(),
        "the manager's log": lighterd.log_end(1 << 24),
        "what ctl says": (failed.stderr + refused.stderr).decode(),
        "events": str(lighterd.events()),
    }
    assert "create" in texts["the runtime's words"] and "exec" in texts["the runtime's words"]
    assert not [name for name, text in texts.items() if secret in text]
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert secret.encode() not in arguments.read_bytes(), arguments
