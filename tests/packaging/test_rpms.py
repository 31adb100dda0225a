"""What is in the rpms, what they ask for and offer; nothing around a launcher changes it."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.proto.version import VERSION
from tests.packaging.rpms import built, query

TOP = Path(__file__).resolve().parents[2]
CORE = f"lighter-core-{VERSION}"
CORE_DIR = f"/usr/lib64/lighter/{VERSION}"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return built(tmp_path_factory.mktemp("rpms"))


@pytest.fixture(scope="module")
def unpacked(rpms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of both packages."""
    root = tmp_path_factory.mktemp("unpacked")
    for name in ("lighter", CORE):
        unpack = 'rpm2cpio "$0" | cpio -idm --quiet'
        subprocess.run(["sh", "-c", unpack, str(rpms[name])], cwd=root, check=True)
    return root


def lines(text: str) -> set[str]:
    return set(text.splitlines())


def test_there_are_three_packages_and_their_source(rpms: dict[str, Path]) -> None:
    assert set(rpms) == {"lighter", CORE, "lighter-selinux", "src"}


def test_the_command_package_has_the_commands_and_no_program(rpms: dict[str, Path]) -> None:
    files = lines(query(rpms["lighter"], "", "--list"))
    assert {
        "/etc/lighter/certs.d",
        "/etc/lighter/config.toml",
        "/usr/bin/ctl",
        "/usr/bin/lighterd",
        "/usr/lib/systemd/system/lighter-containers.service",
        "/usr/lib/systemd/system/lighter.slice",
        "/usr/lib/systemd/system/lighterd.service",
        "/usr/lib/sysusers.d/lighter.conf",
        "/usr/lib/tmpfiles.d/lighter.conf",
        "/usr/libexec/lighter/lighter-spawner",
        "/usr/share/bash-completion/completions/ctl",
        "/usr/share/fish/vendor_completions.d/ctl.fish",
        "/usr/share/man/man1/ctl.1.gz",
        "/usr/share/man/man5/lighter-config.toml.5.gz",
        "/usr/share/man/man8/lighterd.8.gz",
        "/usr/share/zsh/site-functions/_ctl",
        "/var/lib/lighter",
    } <= files
    assert not [path for path in files if path.startswith("/usr/lib64/")]
    assert lines(query(rpms["lighter"], "", "--configfiles")) == {"/etc/lighter/config.toml"}
    noreplace = query(rpms["lighter"], "[%{FILENAMES} %{FILEFLAGS:fflags}\n]")
    assert re.search(r"^/etc/lighter/config.toml cn$", noreplace, re.MULTILINE)


def test_all_of_a_version_is_in_a_directory_of_its_own(rpms: dict[str, Path]) -> None:
    files = lines(query(rpms[CORE], "", "--list")) - {"/usr/lib64/lighter"}
    own = {path for path in files if not path.startswith(f"/usr/share/licenses/{CORE}-{VERSION}")}
    assert all(path == CORE_DIR or path.startswith(CORE_DIR + "/") for path in own)
    assert f"{CORE_DIR}/site/lighter/daemon/app.py" in own
    assert not [path for path in own if "/tests/lighter" in path or path.endswith(".pyx")]


def test_requirements_and_offers_are_what_is_meant(rpms: dict[str, Path]) -> None:
    requires = lines(query(rpms["lighter"], "", "--requires"))
    assert {"(runc or crun)", "container-selinux", f"{CORE} = {VERSION}-1"} <= requires
    assert lines(query(rpms["lighter"], "", "--recommends")) == {"containernetworking-plugins"}
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    offers = lines(query(rpms[CORE], "", "--provides"))
    for pin in project["dependencies"]:
        name, _, version = pin.partition("==")
        assert f"bundled(python3dist({name})) = {version}" in offers
    stray = [offer for offer in offers if not offer.startswith(("bundled(", "lighter-core"))]
    assert not stray
    # Libraries that the wheels bring along are nobody else's to install.
    needs = lines(query(rpms[CORE], "", "--requires"))
    assert not [need for need in needs if re.match(r"lib.+-[0-9a-f]{8}", need)]
    assert not [need for need in needs if need.startswith(("python3dist", "python(abi)"))]


def test_no_path_of_the_build_is_in_any_file(unpacked: Path) -> None:
    for file in (path for path in unpacked.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert b"BUILDROOT" not in content and b".cache/rpm" not in content, file


def test_what_is_packaged_has_no_fault_points_and_names_its_revision(unpacked: Path) -> None:
    site = unpacked / CORE_DIR[1:] / "site"
    assert "\nENABLED = False\n" in (site / "lighter/proto/faults.py").read_text()
    assert 'REVISION = "unknown"' not in (site / "lighter/daemon/version.py").read_text()


@pytest.fixture
def launcher(unpacked: Path, tmp_path: Path) -> Iterator[str]:
    """ctl's launcher with the unpacked directory for /usr, in a directory with poison."""
    text = (unpacked / "usr/bin/ctl").read_text()
    path = tmp_path / "ctl"
    path.write_text(text.replace("/usr/lib64", f"{unpacked}/usr/lib64"))
    path.chmod(0o755)
    for name in ("click", "msgpack", "lighter", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('poisoned')")
    before = os.getcwd()
    os.chdir(tmp_path)
    yield str(path)
    os.chdir(before)


def test_nothing_around_a_launcher_changes_it(launcher: str, tmp_path: Path) -> None:
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "x", "PYTHONHOME": "/no/such"}
    done = subprocess.run(
        [launcher, "--version"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"ctl version {VERSION}\n"), done.stderr


def test_the_manual_page_has_every_command(unpacked: Path) -> None:
    shown = subprocess.run(
        ["zcat", str(unpacked / "usr/share/man/man1/ctl.1.gz")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for command in ("run", "tasks", "images import", "containers create", "system shims"):
        assert f".SS {command}\n" in shown, command
