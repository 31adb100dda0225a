"""The wheels that the rpm bundles: written down once with their hashes, fetched from that list.

    wheels.py lock           renew wheels.txt and build-wheels.txt from pyproject.toml's pins
    wheels.py fetch DIR      download what both files name into DIR, unless it is there

Wheels are taken for CPython 3.11 and 3.12 on x86_64 with the glibc of CentOS Stream 9. Both files
are pip requirements with hashes, so the build itself lets pip check what it installs.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
BUNDLED = HERE / "wheels.txt"  # what is shipped
BUILD_ONLY = HERE / "build-wheels.txt"  # what makes our own wheel
PYTHONS = ("3.11", "3.12")
NEWEST_GLIBC = 34  # 2.34: CentOS Stream 9
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(5, NEWEST_GLIBC + 1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)


class WheelsError(Exception):
    """What could not be done, "verb object: cause"."""


def locked(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Name → (version, sha256 digests) of a file that `lock` wrote."""
    found: dict[str, tuple[str, set[str]]] = {}
    for entry in re.split(r"\n(?=\S)", path.read_text()):
        if entry.startswith("#") or not entry.strip():
            continue
        head, *hashes = entry.split()
        name, _, version = head.partition("==")
        digests = {word.removeprefix("--hash=sha256:") for word in hashes if word != "\\"}
        found[name] = (version, digests)
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pip_download(target: Path, python: str, *wanted: str) -> None:
    """`pip download` of wheels for `python`. Raises WheelsError with pip's last words."""
    argv = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", python),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *("--dest", str(target), *wanted),
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise WheelsError(f"download wheels for {python}: {done.stderr.strip()[-2000:]}")


def lock() -> None:
    """Resolve pyproject.toml's pins for every Python and write both lists."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    for path, pins, purpose in (
        (BUNDLED, project["project"]["dependencies"], "What the rpm bundles"),
        (BUILD_ONLY, project["build-system"]["requires"], "What builds Lighter's own wheel"),
    ):
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory)
            for python in PYTHONS:
                pip_download(target, python, *pins)
            entries: dict[tuple[str, str], set[str]] = {}
            for wheel in target.iterdir():
                name, version = wheel.name.split("-")[:2]
                key = (name.replace("_", "-").lower(), version)
                entries.setdefault(key, set()).add(sha256(wheel))
        text = [f"# {purpose}; written by `make wheels`, do not edit.\n"]
        for (name, version), digests in sorted(entries.items()):
            hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(digests))
            text.append(f"{name}=={version} \\\n{hashes}\n")
        path.write_text("".join(text))


def fetch(target: Path) -> list[Path]:
    """All wheels of both lists, each with a digest that they name. Raises WheelsError."""
    wanted = {
        digest for path in (BUNDLED, BUILD_ONLY) for _v, s in locked(path).values() for digest in s
    }
    target.mkdir(parents=True, exist_ok=True)
    if not wanted <= (have := dict(_digests(target))).keys():
        for python in PYTHONS:
            for path in (BUNDLED, BUILD_ONLY):
                pip_download(target, python, "--no-deps", "--require-hashes", "-r", str(path))
        have = dict(_digests(target))
    if missing := wanted - have.keys():
        raise WheelsError(f"fetch wheels: nothing has the digests {', '.join(sorted(missing))}")
    return sorted(have[digest] for digest in wanted)


def _digests(directory: Path) -> Iterator[tuple[str, Path]]:
    for wheel in directory.glob("*.whl"):
        yield sha256(wheel), wheel


def main(command: str, *args: str) -> None:
    if command == "lock":
        lock()
    else:
        fetch(Path(args[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
