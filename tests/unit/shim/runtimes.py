"""Runtimes for tests: a shell script that behaves as a test says, and bundles for the real one."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

# As runc is called by the shim: <binary> --root R --log L --log-format json <verb> …
_PARSE = """#!/bin/sh
root=$2 log=$4; shift 6; verb=$1; shift
while [ $# -gt 1 ]; do
    case $1 in
    --bundle) bundle=$2; shift;;
    --pid-file) pid_file=$2; shift;;
    --process) process=$2; shift;;
    --console-socket) console=$2; shift;;
    esac
    shift
done
id=$1
case $verb in
"""
# Without a container: init is a `sleep` that becomes the shim's child when the script ends.
LIVES = 'sleep 1000 & printf %s $! >"$pid_file"'


def fake(path: Path, *, create: str = LIVES, **verbs: str) -> str:
    """A runtime that runs a piece of shell per verb, with the call's options as variables."""
    text = "".join(f"{verb})\n{body}\n;;\n" for verb, body in {"create": create, **verbs}.items())
    path.write_text(f"{_PARSE}{text}esac\n")
    path.chmod(0o755)
    return str(path)


def find_runc() -> str:
    found = shutil.which("runc")
    assert found, "runc is not installed"
    return found


def make_rootfs(directory: Path) -> Path:
    """A directory with the static busybox and a link per applet."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox is not installed"
    for name in ("bin", "proc", "dev", "tmp", "etc", "sys"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin" / "busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            os.symlink("busybox", directory / "bin" / applet)
    return directory


def process(*args: str, terminal: bool = False) -> dict[str, Any]:
    """An OCI process of root without further rights."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin", "HOME=/"],
        "cwd": "/",
        "capabilities": {},
        "noNewPrivileges": True,
    }


def spec(rootfs: Path, cgroup: str, *args: str, terminal: bool = False) -> dict[str, Any]:
    """A small OCI spec with namespaces of its own, on a rootfs that is used as it is."""
    flags = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": process(*args, terminal=terminal),
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": flags},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
        },
    }


def write_json(path: Path, value: dict[str, Any]) -> str:
    path.write_text(json.dumps(value))
    return str(path)
