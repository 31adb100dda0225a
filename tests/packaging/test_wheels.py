"""The bundled wheels: what pyproject.toml pins and what that needs, with hashes; no others."""

import email
import hashlib
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.rpms import unpack

TOP = Path(__file__).resolve().parents[2]
LISTS = {"wheels.txt": "dependencies", "build-wheels.txt": "requires"}
NEWEST_GLIBC = (2, 34)  # CentOS Stream 9


def listed(name: str) -> dict[str, tuple[str, set[str]]]:
    """Name → (version, digests), read as pip does."""
    text = (TOP / "packaging/rpm" / name).read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, text.splitlines()):
        if not line.startswith("#"):
            pin, *hashes = line.split()
            distribution, _, version = pin.partition("==")
            digests = {re.fullmatch(r"--hash=sha256:([0-9a-f]{64})", h)[1] for h in hashes}  # type: ignore[index]
            found[distribution] = (version, digests)
    return found


@pytest.fixture(scope="module")
def wheels(rpms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digest → wheel, of those in the source rpm."""
    sources = tmp_path_factory.mktemp("sources")
    unpack(rpms["src"], sources)
    (archive,) = sources.glob("*-wheels.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(sources)  # our own, and flat
    found = (sources / "wheels").iterdir()
    return {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in found}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_every_pin(name: str) -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    table: dict[str, Any] = project["project" if name == "wheels.txt" else "build-system"]
    pins = dict(pin.split("==") for pin in table[LISTS[name]])
    have = {distribution: version for distribution, (version, _d) in listed(name).items()}
    assert pins.items() <= have.items(), "`make wheels` was not run after a change of pyproject"


def test_the_source_rpm_has_the_listed_wheels_and_no_other(wheels: dict[str, Path]) -> None:
    wanted = {
        digest for name in LISTS for _v, digests in listed(name).values() for digest in digests
    }
    assert set(wheels) == wanted


@pytest.mark.parametrize("python", ["cp311", "cp312"])
def test_each_interpreter_finds_a_wheel_of_each(python: str, wheels: dict[str, Path]) -> None:
    for name, (version, digests) in listed("wheels.txt").items():
        fitting = [wheels[d].name for d in digests if fits(wheels[d].name, python)]
        assert len(fitting) == 1, f"{name} {version} for {python}: {fitting}"


def fits(wheel: str, python: str) -> bool:
    """Whether a wheel's tags (PEP 425) are for that CPython on x86_64 and the oldest glibc."""
    interpreter, abi, platform = wheel.removesuffix(".whl").split("-")[-3:]
    pure = "py3" in interpreter.split(".") and platform == "any"
    stable = abi == "abi3" and int(interpreter[3:]) <= int(python[3:])
    if not pure:
        named = platform.replace("manylinux2014_", "manylinux_2_17_")  # PEP 600's legacy name
        glibcs = re.findall(r"manylinux_(\d+)_(\d+)_x86_64", named)
        assert glibcs and min((int(a), int(b)) for a, b in glibcs) <= NEWEST_GLIBC, wheel
    return pure or stable or (interpreter, abi) == (python, python)


def test_what_the_wheels_need_is_among_them(wheels: dict[str, Path]) -> None:
    have = set(listed("wheels.txt"))
    for _version, digests in listed("wheels.txt").values():
        for digest in digests:
            for need in requirements(wheels[digest]):
                assert need in have, f"{wheels[digest].name} needs {need}"


def requirements(wheel: Path) -> set[str]:
    """Names that a wheel needs on Linux with a new Python, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    names = set()
    for requirement in metadata.get_all("Requires-Dist") or []:
        wanted, _, marker = requirement.partition(";")
        elsewhere = (
            "extra",
            "win32",
            "Windows",
            "PyPy",
            "pypy",
            "python_version <",
            "python_full_version <",
        )
        if not any(word in marker for word in elsewhere):
            names.add(re.match(r"[A-Za-z0-9._-]+", wanted)[0].lower().replace("_", "-"))  # type: ignore[index]
    return names
