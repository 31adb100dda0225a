"""The installed programs: nothing around them changes them; versions live side by side."""

import json
import mmap
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.proto.version import VERSION
from tests.harness import Lighterd
from tests.packaging.conftest import COMPAT, CORE
from tests.packaging.rpms import NEXT, programs, query
from tests.processes import spawners

SITE = f"/usr/lib64/lighter/{VERSION}/site"
POISONED = (
    "click",
    "msgpack",
    "zmq",
    "tomli_w",
    "lighter",
    "daemon",
    "sitecustomize",
    "json",
    "re",
)


@pytest.fixture(scope="session")
def installed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with lighterd, ctl and lighter-spawner, run as they are installed."""
    return programs(unpacked, tmp_path_factory.mktemp("installed") / "bin")


@pytest.fixture
def poison(tmp_path: Path) -> dict[str, str]:
    """Environment variables that lead an interpreter to modules which end it with a word."""
    for name in POISONED:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('poisoned')")
    (tmp_path / ".local").mkdir()
    here = str(tmp_path)
    return {
        "PYTHONPATH": here,
        "PYTHONSTARTUP": f"{here}/click.py",
        "PYTHONHOME": "/no/such",
        "PYTHONINSPECT": "1",
        "HOME": here,
    }


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["ctl", "--version"], 0, f"ctl version {VERSION}\n"),
        (["lighterd", "--version"], 0, f"lighterd {VERSION}\n"),
        (["lighter-spawner", SITE, "no settings"], 1, "JSONDecodeError"),
    ],
)
def test_nothing_around_a_launcher_changes_it(
    argv: list[str],
    code: int,
    said: str,
    installed: Path,
    poison: dict[str, str],
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [str(installed / argv[0]), *argv[1:]],
        env={**os.environ, **poison},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "poisoned" not in done.stdout + done.stderr


def test_the_poison_would_work(poison: dict[str, str], tmp_path: Path) -> None:
    """On an interpreter that is not isolated: else the test above could not fail."""
    del poison["PYTHONHOME"]
    argv = ["/usr/bin/python3", "-c", "import json"]
    done = subprocess.run(argv, env={**os.environ, **poison}, cwd=tmp_path, capture_output=True)
    assert b"poisoned" in done.stderr


def test_containers_run_on_the_installed_programs_alone(
    make_lighterd: Callable[..., Lighterd], installed: Path, poison: dict[str, str]
) -> None:
    """Manager, spawner and shim are of the versioned directory, without fault points."""
    lighterd = make_lighterd()
    lighterd.use(installed)
    # A build with fault points would end at this one.
    lighterd.start(FAULT="start.recovered:abort", FAULT_TRACE=f"{lighterd.base}/trace", **poison)
    image = lighterd.import_busybox()
    done = lighterd.ctl("run", "--rm", image, "one", "sh", "-c", "echo hello; exit 7")
    assert (done.returncode, done.stdout) == (7, b"hello\n"), done.stderr
    lighterd.ctl("run", "-d", image, "two", "sleep", "600", check=True)
    (shim,) = lighterd.shims()
    (spawner,) = spawners(lighterd.instance)
    for pid in (lighterd.pid, spawner, shim):
        code = {
            line.split(maxsplit=5)[5]
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if ".so" in line and "python" in line and "/usr/lib/python3" not in line
        }
        assert any(path.startswith(f"{SITE}/") for path in code)
        assert not [path for path in code if not path.startswith(("/usr/lib", SITE))], pid
    assert not (lighterd.base / "trace").exists()
    server = json.loads(lighterd.ctl("version", "--format", "json", check=True).stdout)["server"]
    assert server["version"] == VERSION
    assert re.fullmatch(r"[0-9a-f]{12}", server["revision"])


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ctl", "ta"], {"tasks"}),
        (["ctl", "tasks", "k"], {"kill"}),
        (["ctl", "run", "--net-"], {"--net-host"}),
        (["lighterd", "--sta"], {"--state"}),
        (["lighterd", "config", ""], {"check", "default", "dump"}),
    ],
)
def test_bash_completes_words(
    words: list[str], offered: set[str], installed: Path, unpacked: Path, tmp_path: Path
) -> None:
    script = unpacked / f"usr/share/bash-completion/completions/{words[0]}"
    ask = """
script=$1; shift
source "$script"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
"_$1_completion" "$1" && printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", ask, "bash", str(script), *words],
        env={"PATH": f"{installed}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered_too(shell: str, installed: Path, unpacked: Path) -> None:
    place = "zsh/site-functions/_ctl" if shell == "zsh" else "fish/vendor_completions.d/ctl.fish"
    assert f"_CTL_COMPLETE={shell}_complete" in (unpacked / "usr/share" / place).read_text()
    environ = {"_CTL_COMPLETE": f"{shell}_complete", "COMP_WORDS": "ctl ta", "COMP_CWORD": "1"}
    if shell == "fish":
        environ = {**environ, "COMP_WORDS": "ctl ta", "COMP_CWORD": "ta"}
    argv = [str(installed / "ctl")]
    shown = subprocess.run(argv, env={**os.environ, **environ}, capture_output=True, text=True)
    assert "tasks" in shown.stdout, shown.stderr


class Root:
    """A directory that rpm takes for a system: a shell, and no systemd."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        (directory / "bin").mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox, "a busybox is needed for a root with a shell"
        shutil.copy(busybox, directory / "bin/busybox")
        (directory / "bin/sh").symlink_to("busybox")

    def rpm(self, *args: str) -> str:
        argv = ["rpm", "--root", str(self.dir), *args]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr or "saved as" in done.stderr, done.stderr
        return done.stdout

    def version(self, path: str) -> str:
        """What the launcher at `path` says, with this root's files over the host's."""
        over = f'mount -t overlay overlay -o "lowerdir={self.dir}/usr:/usr" /usr && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", over, "sh", path, "--version"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_an_upgrade_leaves_the_version_before_and_the_configuration(
    rpms: dict[str, Path], newer: dict[str, Path], tmp_path: Path
) -> None:
    root = Root(tmp_path / "root")
    old = [str(rpms[name]) for name in ("lighter", CORE, "lighter-selinux")]
    new = [str(newer[name]) for name in ("lighter", f"lighter-core-{NEXT}", "lighter-selinux")]
    root.rpm("-i", "--nodeps", *old)
    root.rpm("-V", "--nodeps", "lighter", CORE, "lighter-selinux")
    config = root.dir / "etc/lighter/config.toml"
    config.write_text("version = 3\n")
    (root.dir / "var/lib/lighter/lighter.db").write_text("data")

    root.rpm("-U", "--nodeps", *new)
    installed = root.rpm("-qa", "--queryformat", "%{NAME} %{VERSION}\n").splitlines()
    assert sorted(installed) == [
        f"lighter {NEXT}",
        f"lighter-core-{VERSION} {VERSION}",
        f"lighter-core-{NEXT} {NEXT}",
        f"lighter-selinux {NEXT}",
    ]
    root.rpm("-V", "--nodeps", CORE, f"lighter-core-{NEXT}")
    assert config.read_text() == "version = 3\n"
    assert root.version("/usr/bin/lighterd") == f"lighterd {NEXT}"
    for version in (VERSION, NEXT):
        for name, said in (("lighterd", "lighterd"), ("ctl", "ctl version")):
            launcher = f"/usr/lib64/lighter/{version}/{name}"
            assert root.version(launcher) == f"{said} {version}"

    root.rpm("-U", "--oldpackage", "--nodeps", str(rpms["lighter"]))
    assert root.version("/usr/bin/lighterd") == f"lighterd {VERSION}"
    root.rpm("-e", "--nodeps", f"lighter-core-{NEXT}")
    assert os.listdir(root.dir / "usr/lib64/lighter") == [VERSION]

    root.rpm("-e", "--nodeps", "lighter", CORE, "lighter-selinux")
    assert not (root.dir / "usr/lib64/lighter").exists()
    assert not (root.dir / "usr/libexec/lighter").exists()
    assert (root.dir / "var/lib/lighter/lighter.db").read_text() == "data"
    assert (root.dir / "etc/lighter/config.toml.rpmsave").read_text() == "version = 3\n"


def test_a_package_is_checked_before_it_is_installed(
    make_lighterd: Callable[..., Lighterd], installed: Path, rpms: dict[str, Path]
) -> None:
    """Either package, or the directory with both; the sources say nothing of it."""
    lighterd = make_lighterd()
    lighterd.use(installed)
    lighterd.start()
    image = lighterd.import_busybox()
    lighterd.ctl("run", "-d", image, "c", "sleep", "600", check=True)
    for path in (rpms["lighter"], rpms[CORE], rpms[CORE].parent):
        done = lighterd.ctl("upgrade", "check", str(path), check=True)
        assert done.stdout.decode().splitlines() == [
            f"version {VERSION} can take over from {VERSION}",
            "running shims: 1, 1 can be adopted",
        ]
    refused = lighterd.ctl("upgrade", "check", str(rpms["lighter-selinux"]))
    assert refused.returncode == 1
    assert b"it does not say what it can take over; give the package lighter" in refused.stderr


def test_only_the_command_in_the_path_may_hand_over(unpacked: Path) -> None:
    chooses = (unpacked / "usr/bin/lighterd").read_text()
    kept = (unpacked / f"usr/lib64/lighter/{VERSION}/lighterd").read_text()
    assert 'cores="/usr/lib64/lighter",' in chooses
    assert kept == chooses.replace('cores="/usr/lib64/lighter",', 'cores="",')
    # A ctl of another version is told by either which is its own.
    assert f'ctl="/usr/lib64/lighter/{VERSION}/ctl"' in kept


def test_a_core_that_something_runs_from_is_not_removed(
    rpms: dict[str, Path], tmp_path: Path
) -> None:
    """What is looked at is what is mapped: a shim's title does not tell its version."""
    root = Root(tmp_path / "root")
    for tool in ("grep", "sleep"):
        (root.dir / "bin" / tool).symlink_to("busybox")
    (root.dir / "proc").mkdir()
    root.rpm("-i", "--nodeps", str(rpms[CORE]))
    (library,) = (root.dir / SITE[1:] / "msgpack").glob("*.so")
    subprocess.run(["mount", "--bind", "/proc", str(root.dir / "proc")], check=True)
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            argv = ["rpm", "--root", str(root.dir), "-e", CORE]
            refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0
        assert f"{CORE} stays: shims or a manager run from it" in refused.stderr
        assert library.exists()
        root.rpm("-V", "--nodeps", CORE)
        root.rpm("-e", CORE)
    finally:
        subprocess.run(["umount", str(root.dir / "proc")], check=True)
    assert not (root.dir / "usr/lib64/lighter").exists()
    # Said again it is an error of the caller's and harms nothing; installed again it is whole.
    gone = subprocess.run(["rpm", "--root", str(root.dir), "-e", CORE], capture_output=True)
    assert gone.returncode == 1
    root.rpm("-i", "--nodeps", str(rpms[CORE]))
    root.rpm("-V", "--nodeps", CORE)
    root.rpm("-e", CORE)


def test_requirements_can_be_met_and_name_what_is_missing(
    rpms: dict[str, Path], newer: dict[str, Path], tmp_path: Path
) -> None:
    """On a host with SELinux all three are installed; going back is the small package's alone,

    whether or not it stands in containerd's place.
    """
    root = Root(tmp_path / "root")
    root.rpm("-i", "--nodeps", *stubs(tmp_path, rpms[CORE]))
    old = [str(rpms[name]) for name in ("lighter", CORE, "lighter-selinux")]
    argv = ["rpm", "--root", str(root.dir), "-i", "--test", *old[:2]]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert re.findall(r"\t(\S.*) is needed by lighter-", refused.stderr) == [
        f"(lighter-selinux >= {VERSION}-1 if selinux-policy-targeted)"
    ]
    root.rpm("-i", "--test", *old)
    root.rpm("-i", *old)
    new = [str(newer[name]) for name in ("lighter", f"lighter-core-{NEXT}", "lighter-selinux")]
    root.rpm("-U", *new)
    root.rpm("-U", "--oldpackage", "--test", old[0])
    root.rpm("-i", "--test", str(newer[COMPAT]))
    root.rpm("-i", "--justdb", "--noscripts", str(newer[COMPAT]))
    root.rpm("-U", "--oldpackage", "--test", old[0])


def stubs(directory: Path, core: Path) -> list[str]:
    """A package without files that offers what ours require of a system with SELinux."""
    needs = query(core, "", "--requires").splitlines()
    offers = [need for need in needs if need.endswith(")") and not need.startswith("rpmlib(")]
    offers += [need for need in needs if need.startswith("/")]
    offers += ["runc", "container-selinux", "selinux-policy-targeted", "policycoreutils", "/bin/sh"]
    provides = "\n".join(f"Provides: {offer}" for offer in offers)
    spec = directory / "system.spec"
    spec.write_text(
        "Name: system\nVersion: 1\nRelease: 1\nSummary: s\nLicense: MIT\nBuildArch: noarch\n"
        f"{provides}\n%description\ns\n%files\n"
    )
    argv = ["rpmbuild", "-bb", "--define", f"_topdir {directory}/made", str(spec)]
    subprocess.run(argv, check=True, capture_output=True)
    return [str(rpm) for rpm in directory.glob("made/RPMS/noarch/*.rpm")]
