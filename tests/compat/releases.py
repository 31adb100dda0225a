"""Releases that do not exist: these sources with other literals, laid out as installed ones are.

    <cores>/<version>/{lighterd, ctl, spawner, site/lighter/…}

What such a release runs is its own copy; its libraries are those of the tests' environment.
"""

import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
FOLDERS = ("daemon", "shim", "proto", "ctl")
_PROGRAM = """#!{python} -IS
import sys

sys.path[:0] = [{site!r}]
sys.path.append({libraries!r})
{body}
"""
_LIGHTERD = """from lighter.daemon.__main__ import main

main(spawner=[{spawner!r}], cores={cores!r}, ctl={ctl!r})"""
_CTL = """from lighter.ctl.__main__ import main

main()"""
_SPAWNER = """from lighter.shim.__main__ import main

main()"""


def make_release(cores: Path, version: str, migration: str = "", **literals: Any) -> Path:
    """The directory of a version; `literals` go into proto/compat.py in place of ours.

    `migration`: SQL that it adds to the schema's history. Its own lighterd serves;
    `started(cores, version)` gives one that may hand over to another.
    """
    core = cores / version
    site = core / "site"
    for folder in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TOP / folder, site / "lighter" / folder, ignore=unwanted)
    proto = site / "lighter/proto"
    _assign(proto / "version.py", "VERSION", version)
    for name, value in literals.items():
        _assign(proto / "compat.py", name, value)
    if migration:
        with (site / "lighter/daemon/metadata/schema.py").open("a") as schema:
            schema.write(f"\nMIGRATIONS = (*MIGRATIONS, {migration!r})\n")
    _program(core / "spawner", site, _SPAWNER)
    _program(core / "ctl", site, _CTL)
    _program(core / "lighterd", site, _lighterd(core, ""))
    return core


def started(cores: Path, version: str) -> Path:
    """A directory with the programs that are started when `version` is the one installed."""
    core, programs = cores / version, cores.parent / f"bin-{version}"
    programs.mkdir()
    _program(programs / "lighterd", core / "site", _lighterd(core, str(cores)))
    _program(programs / "ctl", core / "site", _CTL)
    return programs


def _lighterd(core: Path, cores: str) -> str:
    return _LIGHTERD.format(spawner=str(core / "spawner"), ctl=str(core / "ctl"), cores=cores)


def _assign(module: Path, name: str, value: Any) -> None:
    text, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", module.read_text(), flags=re.M)
    assert count == 1, (module, name)
    module.write_text(text)


def _program(path: Path, site: Path, body: str) -> None:
    libraries = sysconfig.get_path("platlib")
    text = _PROGRAM.format(python=sys.executable, site=str(site), libraries=libraries, body=body)
    path.write_text(text)
    path.chmod(0o755)
