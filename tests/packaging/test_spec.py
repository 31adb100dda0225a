"""The spec: its systems, its judge, and that a source rpm is all that a build needs."""

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import COMPAT, CORE
from tests.packaging.rpms import query, unpack

HERE = Path(__file__).resolve().parents[2] / "packaging" / "rpm"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MOST_FILTERS = 5


def run(*argv: str, code: int = 0) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(rpms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what is in the source rpm: two archives and the spec."""
    directory = tmp_path_factory.mktemp("sources")
    unpack(rpms["src"], directory)
    return directory


def build_argv(top: Path, *defines: str) -> list[str]:
    """rpmbuild below `top`, in a network namespace without so much as a loopback that is up."""
    argv = ["unshare", "--net", "rpmbuild", "--nodeps"]
    for define in (f"_topdir {top}", f"lighter_python {PYTHON}", *defines):
        argv += ["--define", define]
    return argv


@pytest.mark.parametrize(
    ("defines", "interpreter", "package", "runtime"),
    [
        (["rhel 9"], "3.12", "python3.12", "runc"),
        (["rhel 10"], "3.12", "python3", "crun"),
        (["lighter_python 3.11"], "3.11", "python3", "runc"),
        ([], "3.12", "python3", "runc"),
    ],
)
def test_the_spec_chooses_interpreter_and_runtime(
    defines: list[str], interpreter: str, package: str, runtime: str, sources: Path
) -> None:
    argv = [word for define in defines for word in ("--define", define)]
    spec = str(sources / "lighter.spec")
    parsed = run("rpmspec", "-P", *argv, spec)
    assert set(re.findall(r"/python(\d\.\d+)", parsed)) == {interpreter}
    needs = run("rpmspec", "-q", "--buildrequires", *argv, spec).split()
    assert package in needs
    assert ("crun" in parsed.partition("%install")[2]) == (runtime == "crun")


def test_rpmlint_has_nothing_to_say_but_for_a_few_reasons(rpms: dict[str, Path]) -> None:
    filters = (HERE / "lighter.rpmlintrc").read_text()
    assert filters.count("addFilter") == filters.count("\n# ") + 1 <= MOST_FILTERS
    said = run(
        *("rpmlint", "-c", str(HERE / "rpmlint.toml"), "-r", str(HERE / "lighter.rpmlintrc")),
        *map(str, rpms.values()),
    )
    assert re.search(r"5 packages .* 0 errors, 0 warnings", said), said


def test_a_source_rpm_alone_builds_the_same_packages_without_a_network(
    rpms: dict[str, Path], tmp_path: Path
) -> None:
    """In another directory than the first build's, which would show in a file that named it."""
    run(*build_argv(tmp_path), "--rebuild", str(rpms["src"]))
    form = "[%{FILENAMES} %{FILEDIGESTS} %{FILEMODES:octal} %{FILEFLAGS:fflags}\n]%{PROVIDES}"
    for name in ("lighter", CORE, COMPAT, "lighter-selinux"):
        again = list(tmp_path.glob(f"RPMS/*/{rpms[name].name}"))
        assert len(again) == 1
        assert query(again[0], form) == query(rpms[name], form)


def test_a_wheel_that_is_not_the_listed_one_is_not_installed(sources: Path, tmp_path: Path) -> None:
    top = tmp_path / "SOURCES"
    top.mkdir()
    for file in sources.glob("lighter-*.tar.gz"):
        (top / file.name).write_bytes(file.read_bytes())
    (archive,) = top.glob("*-wheels.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path)  # our own, and flat
    (wheel,) = (tmp_path / "wheels").glob("tomli_w-*.whl")
    before = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with zipfile.ZipFile(wheel, "a") as changed:
        changed.writestr("tomli_w/more.py", "")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "wheels", "wheels")
    said = run(*build_argv(tmp_path), "-bi", str(sources / "lighter.spec"), code=1)
    assert "DO NOT MATCH THE HASHES" in said
    assert before in said
