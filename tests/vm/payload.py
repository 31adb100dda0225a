"""What the virtual machine gets of this checkout: a second disk, mounted at /opt/payload.

    lib/, bin/  a virtual environment without pip, for the guest's Python 3.11: the four folders as
                they are, their dependencies and pytest's
    tests/      the tests, pyproject.toml beside them
    rpms/, newer/   the package `lighter`, of this checkout and under a higher version
    image.tar   the test image
    docker/     programs and units of Docker 26.1, as its package has them

It is made anew for each run; only the dependencies, which take a download, are kept.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests import images
from tests.packaging.rpms import NEXT, built
from tests.vm.disk import CACHE, make_image

REPOSITORY = Path(__file__).resolve().parents[2]
MOUNT = "/opt/payload"
PYTHON = f"{MOUNT}/bin/python"
FOLDERS = ("daemon", "shim", "proto", "ctl")
DOCKER = f"{MOUNT}/docker"
SIZE = "600M"
_DOCKER = REPOSITORY / ".cache" / "docker" / "26.1"  # by .ci/docker
_PYTHON_VERSION = "3.11"
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
_NOT_NEEDED = ("mypy", "ruff", "types-")
_LAUNCHER = """\
#!{python}
from lighter.{module}.__main__ import main
main()
"""
RPMS = f"{MOUNT}/rpms"
NEWER_RPMS = f"{MOUNT}/newer"


def make_payload(work: Path) -> Path:
    """Build the disk in `work`; returns the image."""
    tree = work / "payload"
    library = tree / "lib" / f"python{_PYTHON_VERSION}" / "site-packages"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".cache")
    shutil.copytree(_dependencies(), library, symlinks=True)
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, library / "lighter" / folder, ignore=ignored)
    shutil.copytree(REPOSITORY / "tests", tree / "tests", ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tree)
    shutil.copy(images.busybox_archive(), tree / "image.tar")
    for folder in ("usr/bin", "usr/sbin", "usr/lib/systemd"):
        shutil.copytree(_DOCKER / folder, tree / "docker" / folder, symlinks=True)
    _make_environment(tree)
    for target, version in (("rpms", None), ("newer", NEXT)):
        (tree / target).mkdir()
        for rpm in packages(work, version):
            if not is_core(rpm):
                shutil.copy(rpm, tree / target)
    _compile(library, tree / "tests")
    image = work / "payload.raw"
    make_image(tree, image, SIZE)
    shutil.rmtree(tree)
    return image


def _make_environment(tree: Path) -> None:
    """What `python -m venv` makes, for an interpreter that this host may not have."""
    (tree / "bin").mkdir()
    (tree / "bin" / "python").symlink_to("/usr/bin/python3")
    (tree / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {_PYTHON_VERSION}\n"
    )
    for program, module in (("lighterd", "daemon"), ("ctl", "ctl")):
        launcher = tree / "bin" / program
        launcher.write_text(_LAUNCHER.format(python=PYTHON, module=module))
        launcher.chmod(0o755)


def packages(work: Path, version: str | None = None) -> list[Path]:
    """What a host installs; the SELinux module wants a policy that Debian has not."""
    found = built(work / f"rpms-{version or 'own'}", version)
    return [rpm for name, rpm in found.items() if name == "lighter" or is_core(rpm)]


def policy_package(work: Path) -> Path:
    return built(work / "rpms-own")["lighter-selinux"]


def is_core(rpm: Path) -> bool:
    """Whether it has a version's directory; hosts may have several of these."""
    return rpm.name.startswith("lighter-core-")


def _dependencies() -> Path:
    """A site directory with all that pyproject.toml asks for, from wheels for the guest."""
    listed = subprocess.run(
        [sys.executable, REPOSITORY / ".ci/dependencies.py", REPOSITORY / "pyproject.toml", "dev"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    wanted = [
        line for line in listed.stdout.decode().splitlines() if not line.startswith(_NOT_NEEDED)
    ]
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    site = CACHE / f"site-{key}"
    if site.exists():
        return site
    for older in CACHE.glob("site-*"):
        shutil.rmtree(older)
    making = CACHE / "making-site"
    shutil.rmtree(making, ignore_errors=True)
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(making)]
    argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={_PYTHON_VERSION}"]
    argv += [f"--platform={platform}" for platform in _PLATFORMS]
    subprocess.run([*argv, *wanted], check=True, timeout=600, stdin=subprocess.DEVNULL)
    making.rename(site)
    return site


def _compile(*folders: Path) -> None:
    """Compiled here, where it is fast, if this is the guest's version; by the guest otherwise."""
    if sys.version_info[:2] == tuple(map(int, _PYTHON_VERSION.split("."))):
        argv = [sys.executable, "-m", "compileall", "-q", "-j2", "--invalidation-mode"]
        subprocess.run([*argv, "unchecked-hash", *folders], check=True, timeout=300)
