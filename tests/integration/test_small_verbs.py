"""Verbs beside the large ones: attach's signals, copies at once, install, what there is none of."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import images
from tests.harness import Lighterd
from tests.images import REFERENCE
from tests.unit.images.build import Layout


@pytest.mark.parametrize("proxy", ["true", "false"])
def test_attach_passes_signals_on_or_keeps_them(manager: Lighterd, proxy: str) -> None:
    script = "trap 'echo got TERM; exit 7' TERM; while :; do echo tick; sleep 0.05; done"
    manager.ctl("run", "-d", REFERENCE, "c", "sh", "-c", script, check=True)
    argv = manager.ctl_argv("attach", "--no-stdin", f"--sig-proxy={proxy}", "c")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as attached:
        assert attached.stdout is not None and attached.stdout.readline() == b"tick\n"
        attached.send_signal(signal.SIGTERM)  # it has its output, so it takes part by now
        code = attached.wait(20)
        with manager.client() as client:
            status = client.call("tasks", "get", id="c")["task"]["status"]
    assert (code, status) == ((7, "stopped") if proxy == "true" else (128 + 15, "running"))


def test_copies_into_one_stopped_container_wait_for_each_other(
    manager: Lighterd, tmp_path: Path
) -> None:
    """SEC-75: what several clients do to one object at once comes one after the other."""
    manager.ctl("containers", "create", REFERENCE, "c", "true", check=True)
    names = [f"f{number}" for number in range(6)]
    for name in names:
        (tmp_path / name).write_text(name)

    def copy(name: str) -> bytes:
        return manager.ctl("cp", str(tmp_path / name), f"c:/{name}").stderr

    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(copy, names)) == [b""] * len(names)
    (got := tmp_path / "got").mkdir()
    for name in names:
        manager.ctl("cp", f"c:/{name}", str(got), check=True)
    assert sorted(path.read_text() for path in got.iterdir()) == names


def test_install_puts_programs_of_an_image_where_it_is_told(
    manager: Lighterd, tmp_path: Path
) -> None:
    """A hostile image reaches nothing but that directory."""
    archive, opt, outside = tmp_path / "image.tar", tmp_path / "opt", tmp_path / "outside"
    outside.mkdir()
    made = Layout()
    layer = {"bin/tool": b"#!/bin/sh\n", "lib/libtool.so": b"lib", "etc/passwd": b"x"}
    made.list(made.image([layer]), name="example.com/tools:1")
    archive.write_bytes(made.archive())
    manager.ctl("images", "import", str(archive), check=True)
    install = ("install", "--path", str(opt), "example.com/tools:1")
    manager.ctl(*install, check=True)
    assert sorted(str(path.relative_to(opt)) for path in opt.rglob("*")) == ["bin", "bin/tool"]
    again = manager.ctl(*install)
    assert again.returncode == 1 and b"it is there already" in again.stderr
    (opt / "bin/tool").write_text("old")
    manager.ctl("install", "-r", "--libs", *install[1:], check=True)
    assert (opt / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (opt / "lib/libtool.so").read_bytes() == b"lib"
    # A directory of the image that is a link: it leads to the image's own /tmp, not to the host's.
    (opt / "bin/tool").unlink()
    (opt / "bin/out").symlink_to(outside)
    evil = Layout()
    evil.list(evil.image([{"bin/out/tool": b"bad"}]), name="example.com/evil:1")
    archive.write_bytes(evil.archive())
    manager.ctl("images", "import", str(archive), check=True)
    refused = manager.ctl("install", "-r", "--path", str(opt), "example.com/evil:1")
    assert refused.returncode == 1 and not list(outside.iterdir()), refused.stderr
    assert not manager.ctl("c", "ls", "-q", check=True).stdout


def test_what_there_is_none_of_is_said(manager: Lighterd) -> None:
    shown = manager.ctl("deprecations", "list", check=True).stdout.decode().split()
    assert shown == ["ID", "LAST", "OCCURRENCE", "MESSAGE"]
    assert manager.ctl("--format", "json", "deprecations", "ls", check=True).stdout == b"[]\n"
    for verb in ("ls", "run", "rm"):
        refused = manager.ctl("sandboxes", verb)
        assert refused.returncode == 1 and b"no sandbox controller" in refused.stderr
    header = manager.ctl("ps", check=True).stdout.split()
    assert header[-1] == b"PORTS"


def test_what_a_command_has_made_it_ends_anywhere(manager: Lighterd) -> None:
    """In a namespace that Docker or Kubernetes looks after its own container is its own."""
    archive = str(images.busybox_archive())
    manager.ctl("-n", "k8s.io", "images", "import", archive, check=True)
    script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"
    argv = manager.ctl_argv("-n", "k8s.io", "run", REFERENCE, "c", "sh", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as attached:
        assert attached.stdout is not None and attached.stdout.readline() == b"up\n"
        attached.send_signal(signal.SIGTERM)
        assert attached.wait(20) == 7
    refused = manager.ctl("-n", "k8s.io", "start", "c")
    assert refused.returncode == 1 and b"--force" in refused.stderr, refused.stderr
    failed = manager.ctl("-n", "k8s.io", "run", "-d", REFERENCE, "bad", "no-such-program")
    assert failed.returncode == 127
    assert manager.ctl("-n", "k8s.io", "c", "ls", "-q", check=True).stdout == b"c\n"
