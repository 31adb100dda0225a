"""Source and binary rpms of this checkout, with any rpmbuild: `make rpm`.

    build.py [--version X.Y.Z] [--output DIR] [--literal NAME=VALUE ...]

The sources are the files that git knows, as they are now, but for literals of proto/compat.py that
tests set, to have packages of a version that does not exist. The wheels are those of wheels.txt and
build-wheels.txt. rpmbuild runs without a network. What was built once from the same sources, by the
same Python, is taken from .cache.
"""

import argparse
import ast
import fcntl
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import wheels

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
CACHE = TOP / ".cache" / "rpm"
SHIPPED = ("daemon", "shim", "proto", "ctl", "packaging", "pyproject.toml", "README.md", "LICENSE")
BUILD_S = 900.0
KEPT = 4  # builds in the cache
_VERSION_FILE = "proto/version.py"
_COMPAT_FILE = "proto/compat.py"


class BuildError(Exception):
    """What could not be built, "verb object: cause"."""


def git(*args: str) -> str:
    argv = ["git", "-c", "safe.directory=*", "-C", str(TOP), *args]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def own_version() -> str:
    found = re.search(r'^VERSION = "(.+)"$', (TOP / _VERSION_FILE).read_text(), re.MULTILINE)
    assert found is not None, f"{_VERSION_FILE} names no version"
    return found[1]


def sources(version: str, literals: dict[str, str]) -> list[tuple[str, int, bytes]]:
    """(path, mode, content) of all that is shipped, with `version` in the places that say it."""
    own = own_version()
    listed = git("ls-files", "-co", "--exclude-standard", "-z", "--", *SHIPPED).split("\0")
    found = []
    for path in sorted(filter(None, listed)):
        file = TOP / path
        if not file.is_file():
            continue  # removed, and not yet committed so
        content = file.read_bytes()
        if path == _VERSION_FILE:
            content = content.replace(f'"{own}"'.encode(), f'"{version}"'.encode())
        elif path == "pyproject.toml":
            content = content.replace(
                f'\nversion = "{own}"\n'.encode(), f'\nversion = "{version}"\n'.encode(), 1
            )
        elif path == _COMPAT_FILE:
            content = _with_literals(content.decode(), literals).encode()
        found.append((path, 0o755 if os.access(file, os.X_OK) else 0o644, content))
    return found


def _with_literals(text: str, literals: dict[str, str]) -> str:
    for name, value in literals.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise BuildError(f"set {name}: {_COMPAT_FILE} does not assign it once")
    return text


def compat(files: list[tuple[str, int, bytes]]) -> tuple[list[int], int, int]:
    """What the sources' proto/compat.py says: PROTOCOLS, SCHEMA, SCHEMA_NEWEST."""
    text = next(content for path, _mode, content in files if path == _COMPAT_FILE).decode()
    said = dict(re.findall(r"^([A-Z_]+) = (.+)$", text, re.MULTILINE))
    protocols, schema, newest = (
        ast.literal_eval(said[name]) for name in ("PROTOCOLS", "SCHEMA", "SCHEMA_NEWEST")
    )
    return list(protocols), schema, newest


def archive(target: Path, files: list[tuple[str, int, bytes]], at: int) -> None:
    """A tar of `files`, equal for equal files; gzipped by the name."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, mode, content in files:
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.mtime = len(content), mode, at
            tar.addfile(entry, io.BytesIO(content))
    raw = data.getvalue()
    target.write_bytes(gzip.compress(raw, mtime=0) if target.suffix == ".gz" else raw)


def spec(version: str, revision: str, at: int, said: tuple[list[int], int, int]) -> str:
    """lighter.spec with what it leaves to the build in front and behind."""
    protocols, schema, newest = said
    provides = "\n".join(
        f"Provides: bundled(python3dist({name})) = {pinned}"
        for name, (pinned, _digests) in sorted(wheels.locked(wheels.BUNDLED).items())
    )
    # A global is one line; a defined macro may have several.
    lines = [f"%global lighter_version {version}", f"%global lighter_revision {revision}"]
    bundled = provides.replace("\n", "\\\n")
    lines.append(f"%define lighter_bundled() \\\n{bundled}\\\n%{{nil}}\n")
    offers = [*(f"lighter(protocol) = {number}" for number in protocols)]
    offers += [f"lighter(schema) = {schema}", f"lighter(schema-newest) = {newest}"]
    taken = "\\\n".join(f"Provides: {offer}" for offer in offers)
    lines.append(f"%define lighter_compat() \\\n{taken}\\\n%{{nil}}")
    lines.append(f"%global lighter_compat_said {[tuple(protocols), schema, newest]}\n\n")
    date = time.strftime("%a %b %d %Y", time.gmtime(at))
    changelog = (
        f"\n%changelog\n* {date} Lighter's developers - {version}-1\n- Revision {revision}\n"
    )
    return "\n".join(lines) + (HERE / "lighter.spec").read_text() + changelog


def build(
    version: str | None = None,
    python: str | None = None,
    literals: dict[str, str] | None = None,
) -> list[Path]:
    """The rpms, the source rpm among them. Raises BuildError, WheelsError."""
    version = version or own_version()
    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    revision = git("rev-parse", "--short=12", "HEAD").strip()
    at = int(git("log", "-1", "--format=%ct"))
    files = sources(version, literals or {})
    text = spec(version, revision, at, compat(files))
    inputs = (files, text, python, Path(__file__).read_bytes())
    key = hashlib.sha256(repr(inputs).encode()).hexdigest()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = CACHE / f"built-{key[:16]}"
        if not done.exists():
            top = CACHE / "making"
            shutil.rmtree(top, ignore_errors=True)
            _rpmbuild(top, files, text, version, at, python)
            top.rename(done)
            _forget_oldest()
        os.utime(done)
        return sorted([*done.glob("RPMS/*/*.rpm"), *done.glob("SRPMS/*.rpm")])


def _rpmbuild(
    top: Path, files: list[tuple[str, int, bytes]], text: str, version: str, at: int, python: str
) -> None:
    for name in ("BUILD", "BUILDROOT", "RPMS", "SOURCES", "SPECS", "SRPMS"):
        (top / name).mkdir(parents=True)
    within = [(f"lighter-{version}/{path}", mode, content) for path, mode, content in files]
    archive(top / "SOURCES" / f"lighter-{version}.tar.gz", within, at)
    fetched = [
        (f"wheels/{wheel.name}", 0o644, wheel.read_bytes())
        for wheel in wheels.fetch(CACHE / "wheels")
    ]
    archive(top / "SOURCES" / f"lighter-{version}-wheels.tar.gz", fetched, at)
    (top / "SPECS" / "lighter.spec").write_text(text)
    argv = ["unshare", "--net", "rpmbuild", "-ba", "--nodeps"]
    argv += ["--define", f"_topdir {top}", "--define", f"lighter_python {python}"]
    done = subprocess.run(
        [*argv, str(top / "SPECS" / "lighter.spec")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
        env={"PATH": os.environ["PATH"], "HOME": str(top), "LC_ALL": "C.UTF-8"},
    )
    if done.returncode:
        raise BuildError(
            f"build rpms: rpmbuild ended with {done.returncode}\n{done.stdout[-6000:]}"
        )
    shutil.rmtree(top / "BUILD")
    shutil.rmtree(top / "BUILDROOT")


def _forget_oldest() -> None:
    builds = sorted(CACHE.glob("built-*"), key=lambda path: path.stat().st_mtime)
    for old in builds[:-KEPT]:
        shutil.rmtree(old)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build Lighter's rpms.")
    parser.add_argument("--version")
    parser.add_argument("--output", type=Path, default=TOP / "dist")
    parser.add_argument("--literal", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    try:
        literals = dict(literal.split("=", 1) for literal in args.literal)
        rpms = build(args.version, literals=literals)
    except (BuildError, wheels.WheelsError) as error:
        sys.exit(f"build.py: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    for rpm in rpms:
        shutil.copyfile(rpm, args.output / rpm.name)
        print(args.output / rpm.name)


if __name__ == "__main__":
    main()
