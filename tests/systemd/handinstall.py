"""Lighter put into a machine by hand, in the layout of the rpm."""

import shutil
import sys
from pathlib import Path

from tests.systemd.machine import Machine

_TOP = Path(__file__).resolve().parents[2]
_UNITS = _TOP / "packaging/rpm"
_LEFT_OUT = ("lighter", "pip", "mypy", "ruff", "pytest", "hypothesis", "_pytest", "setuptools")

_LAUNCHERS = {
    "/usr/libexec/lighter/lighter-spawner": """
site = sys.argv.pop(1)
sys.path.insert(0, site)
from lighter.shim.__main__ import main
main()
""",
    "/usr/bin/lighterd": """
sys.path.insert(0, "@SITE@")
from lighter.daemon.__main__ import main
main(spawner=("/usr/libexec/lighter/lighter-spawner", "@SITE@"))
""",
    "/usr/bin/ctl": """
sys.path.insert(0, "@SITE@")
from lighter.ctl.__main__ import main
main()
""",
}


def install(machine: Machine, version: str = "0.0.1") -> None:
    site = f"/usr/lib64/lighter/{version}/site"
    packages = next((Path(sys.executable).parents[1] / "lib").glob("python3*")) / "site-packages"

    def leave_out(directory: str, names: list[str]) -> list[str]:
        if Path(directory) == packages:
            return [name for name in names if name.startswith(_LEFT_OUT)]
        return [name for name in names if name == "__pycache__"]

    shutil.copytree(packages, machine.path(site), ignore=leave_out)
    for folder in ("daemon", "shim", "proto", "ctl"):
        shutil.copytree(_TOP / folder, machine.path(f"{site}/lighter/{folder}"), ignore=leave_out)
    for path, body in _LAUNCHERS.items():
        target = machine.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("#!/usr/bin/python3 -IS\nimport sys\n" + body.replace("@SITE@", site))
        target.chmod(0o755)
    for unit in ("lighterd.service", "lighter-containers.service", "lighter.slice"):
        machine.put(_UNITS / unit, f"/usr/lib/systemd/system/{unit}")
    machine.run("python3", "-m", "compileall", "-q", site)
    machine.run("systemctl", "daemon-reload")
