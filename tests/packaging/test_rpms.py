"""What is in the rpms, and what they ask for and offer."""

import importlib.util
import marshal
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from lighter.daemon.config.schema import Config, dump, load
from lighter.proto.release import OWN
from lighter.proto.version import VERSION
from tests.packaging.conftest import COMPAT, CORE
from tests.packaging.rpms import query

TOP = Path(__file__).resolve().parents[2]
CORE_DIR = f"/usr/lib64/lighter/{VERSION}"
# From the system, all of them glibc's, gcc's or the interpreter.
FOREIGN = re.compile(
    r"rpmlib\(.*|rtld\(GNU_HASH\)|/bin/sh|/usr/bin/python3\.\d+"
    r"|(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)|ld-linux-x86-64)\.so\.\d+\(.*"
)
PYTHON = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
# What is in an extension when another project's code is; those that say their version, with it.
NATIVE = {
    "bundled(abseil-cpp) = {}": rb"lts_(\d{8})",
    "bundled(boringssl)": rb"third_party/boringssl",
    "bundled(c-ares)": rb"c-ares resolver",
    "bundled(llhttp)": rb"llhttp_init\b",
    "bundled(pybind11)": rb"N8pybind11",
    "bundled(re2)": rb"N3re2",
    "bundled(upb)": rb"upb_AllExts|upb_DecodeOptions",
    "bundled(zlib) = {}": rb" inflate ([\d.]+) Copyright",
}


def lines(text: str) -> set[str]:
    return set(text.splitlines())


def test_there_are_four_packages_and_their_source(rpms: dict[str, Path]) -> None:
    assert set(rpms) == {"lighter", CORE, COMPAT, "lighter-selinux", "src"}


def test_a_package_puts_it_in_containerds_place(rpms: dict[str, Path]) -> None:
    form = "[%{FILENAMES} %{FILELINKTOS}\n]"
    named = {
        path: link
        for path, _, link in (line.partition(" ") for line in lines(query(rpms[COMPAT], form)))
        if not path.startswith(("/usr/share/doc", "/usr/share/lic"))
    }
    assert named == {
        "/usr/bin/containerd": "lighterd",
        "/usr/lib/systemd/system/containerd.service": "lighterd.service",
        "/usr/lib/systemd/system/lighterd.service.d": "",
        "/usr/lib/systemd/system/lighterd.service.d/containerd.conf": "",
    }
    offers = lines(query(rpms[COMPAT], "", "--provides"))
    assert {"containerd = 2.1.0", "containerd.io = 2.1.0"} <= offers
    assert lines(query(rpms[COMPAT], "", "--conflicts")) == {"containerd", "containerd.io"}
    assert "lighter" in lines(query(rpms[COMPAT], "", "--requires"))


def test_the_command_package_has_the_commands_and_no_program(rpms: dict[str, Path]) -> None:
    files = lines(query(rpms["lighter"], "", "--list"))
    named = {path for path in files if not path.startswith(("/usr/share/doc", "/usr/share/lic"))}
    assert named == {
        "/etc/lighter",
        "/etc/lighter/certs.d",
        "/etc/lighter/config.toml",
        "/usr/bin/ctl",
        "/usr/bin/lighterd",
        "/usr/lib/systemd/system/lighter-containers.service",
        "/usr/lib/systemd/system/lighter.slice",
        "/usr/lib/systemd/system/lighterd.service",
        "/usr/lib/sysusers.d/lighter.conf",
        "/usr/lib/tmpfiles.d/lighter.conf",
        "/usr/libexec/lighter",
        "/usr/libexec/lighter/lighter-spawner",
        "/usr/share/bash-completion/completions/ctl",
        "/usr/share/bash-completion/completions/lighterd",
        "/usr/share/fish/vendor_completions.d/ctl.fish",
        "/usr/share/fish/vendor_completions.d/lighterd.fish",
        "/usr/share/man/man1/ctl.1.gz",
        "/usr/share/man/man5/lighter-config.toml.5.gz",
        "/usr/share/man/man8/lighterd.8.gz",
        "/usr/share/zsh/site-functions/_ctl",
        "/usr/share/zsh/site-functions/_lighterd",
        "/var/lib/lighter",
    }
    assert lines(query(rpms["lighter"], "", "--configfiles")) == {"/etc/lighter/config.toml"}
    noreplace = query(rpms["lighter"], "[%{FILENAMES} %{FILEFLAGS:fflags}\n]")
    assert re.search(r"^/etc/lighter/config.toml cn$", noreplace, re.MULTILINE)


def test_all_of_a_version_is_in_a_directory_of_its_own(rpms: dict[str, Path]) -> None:
    files = lines(query(rpms[CORE], "", "--list")) - {"/usr/lib64/lighter"}
    # Documents too: two versions have no file in common.
    beside = (f"/usr/share/licenses/{CORE}-{VERSION}", f"/usr/share/doc/{CORE}-{VERSION}")
    own = {path for path in files if not path.startswith(beside)}
    assert all(path == CORE_DIR or path.startswith(CORE_DIR + "/") for path in own)
    site = {path.removeprefix(CORE_DIR + "/") for path in own}
    assert {"ctl", "lighterd", "python3", "site/lighter/daemon/app.py"} <= site
    assert not [path for path in site if re.search(r"^site/bin|/tests?/|\.(pyx|h|c)$", path)]


def test_only_root_can_change_anything(rpms: dict[str, Path]) -> None:
    form = "[%{FILEMODES:octal} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]"
    modes = {}
    for name in ("lighter", CORE, COMPAT, "lighter-selinux"):
        for line in query(rpms[name], form).splitlines():
            mode, user, group, path = line.split(" ", 3)
            modes[path] = int(mode, 8)
            assert (user, group) == ("root", "root"), line
            link = modes[path] & 0o170000 == 0o120000
            assert link or modes[path] & 0o6022 == 0, line
    executable = {path for path, mode in modes.items() if mode & 0o170111 == 0o100111}
    assert {path for path in executable if "/site/" not in path} == {
        "/usr/bin/ctl",
        "/usr/bin/lighterd",
        "/usr/libexec/lighter/lighter-spawner",
        f"{CORE_DIR}/ctl",
        f"{CORE_DIR}/lighterd",
    }
    assert modes["/var/lib/lighter"] & 0o777 == 0o700


def test_requirements_and_offers_are_what_is_meant(rpms: dict[str, Path]) -> None:
    requires = lines(query(rpms["lighter"], "", "--requires"))
    asked = {need for need in requires if not need.startswith("rpmlib(")}
    assert asked == {
        "(runc or crun)",
        "container-selinux",
        f"(lighter-selinux >= {VERSION}-1 if selinux-policy-targeted)",
        f"{CORE} = {VERSION}",
        "config(lighter) = " + f"{VERSION}-1",
        "/bin/sh",
        PYTHON,
    }
    recommended = {"containernetworking-plugins", "iptables-nft"}
    assert lines(query(rpms["lighter"], "", "--recommends")) == recommended
    for relation in ("--obsoletes", "--conflicts"):
        assert query(rpms["lighter"], "", relation) == ""
    offers = lines(query(rpms[CORE], "", "--provides"))
    known = ("bundled(", "lighter-core", "lighter(")
    assert not [offer for offer in offers if not offer.startswith(known)]
    needs = lines(query(rpms[CORE], "", "--requires"))
    assert not [need for need in needs if not FOREIGN.fullmatch(need)]
    assert any(need.startswith("libstdc++.so.6(") for need in needs)
    assert {need for need in needs if need.startswith("/")} >= {PYTHON}


def test_both_packages_say_what_their_version_can_take_over(rpms: dict[str, Path]) -> None:
    said = {f"lighter(protocol) = {number}" for number in OWN.protocols}
    said |= {
        f"lighter(schema) = {OWN.schema}",
        f"lighter(schema-newest) = {OWN.schema_newest}",
    }
    for name in ("lighter", CORE):
        offers = lines(query(rpms[name], "", "--provides"))
        assert {offer for offer in offers if offer.startswith("lighter(")} == said | (
            {f"lighter(x86-64) = {VERSION}-1"} if name == "lighter" else set()
        )


def test_bundled_libraries_are_declared_with_their_versions(
    rpms: dict[str, Path], unpacked: Path
) -> None:
    offers = lines(query(rpms[CORE], "", "--provides"))
    pins = re.findall(r"^(\S+)==(\S+)", (TOP / "packaging/rpm/wheels.txt").read_text(), re.M)
    distributions = {offer for offer in offers if offer.startswith("bundled(python3dist(")}
    assert distributions == {f"bundled(python3dist({name})) = {pin}" for name, pin in pins}
    site = unpacked / CORE_DIR[1:] / "site"
    ask = """
import ctypes, glob, sys
sys.path.insert(0, sys.argv[1])
import isal, zmq, zstandard
sodium = ctypes.CDLL(*glob.glob(sys.argv[1] + "/pyzmq.libs/libsodium*")).sodium_version_string
sodium.restype = ctypes.c_char_p
print(f"bundled(zeromq) = {zmq.zmq_version()}")
print(f"bundled(libsodium) = {sodium().decode()}")
print(f"bundled(isa-l) = {isal.ISAL_VERSION}")
print("bundled(zstd) = " + ".".join(map(str, zstandard.ZSTD_VERSION)))
"""
    python = site.parent / "python3"
    argv = [f"/usr/bin/{python.readlink().name}", "-IS", "-c", ask, str(site)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert lines(shown) <= offers
    assert len(lines(shown)) == 4
    native = {offer for offer in offers if re.match(r"bundled\((?!python3dist)", offer)}
    compiled = [path.read_bytes() for path in site.rglob("*.so*")]
    assert native - lines(shown) == {
        (name.format(*(group.decode() for group in found.groups())))
        for name, mark in NATIVE.items()
        for data in compiled
        for found in re.finditer(mark, data)
    }


def test_every_bundled_library_has_its_licence(unpacked: Path) -> None:
    site = unpacked / CORE_DIR[1:] / "site"
    shipped = unpacked / f"usr/share/licenses/{CORE}-{VERSION}/licenses"
    bundled = {path.name.rsplit("-", 2)[0] for path in site.glob("*.dist-info")}
    assert bundled
    assert {path.name for path in shipped.iterdir()} == bundled
    for directory in shipped.iterdir():
        assert any(file.stat().st_size > 400 for file in directory.iterdir()), directory


def test_no_path_of_the_build_is_in_any_file(unpacked: Path) -> None:
    for file in (path for path in unpacked.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert b"BUILDROOT" not in content and b".cache/rpm" not in content, file


def test_every_module_is_compiled_never_to_be_compared_with_its_source(unpacked: Path) -> None:
    site = unpacked / CORE_DIR[1:] / "site"
    sources = list(site.rglob("*.py"))
    assert len(sources) > 300
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        data = compiled.read_bytes()
        # PEP 552: flags, hash of the source. 1: by hash, and unchecked.
        assert int.from_bytes(data[4:8], "little") == 1, compiled
        if data[:4] == importlib.util.MAGIC_NUMBER:
            assert data[8:16] == importlib.util.source_hash(source.read_bytes()), compiled
            code = marshal.loads(data[16:])
            assert isinstance(code, types.CodeType)
            assert code.co_filename == f"/{source.relative_to(unpacked)}"


def test_what_is_packaged_has_no_fault_points(unpacked: Path) -> None:
    site = unpacked / CORE_DIR[1:] / "site"
    assert "\nENABLED = False\n" in (site / "lighter/proto/faults.py").read_text()


# No part of what `config dump` prints: what containerd's files have elsewhere, and other files.
BESIDES = {("plugins", "io.lighter.v1", "registry", "config_path"), ("imports",)}


def test_the_packaged_configuration_changes_nothing_and_shows_every_key(unpacked: Path) -> None:
    path = unpacked / "etc/lighter/config.toml"
    assert load(str(path)) == Config()
    # Its lines without their "# " are a configuration that a manager takes.
    shown = re.sub(r"^# (?=\S+ = |\[)", "", path.read_text(), flags=re.MULTILINE)
    whole = tomllib.loads(shown)
    for example in ("proxy_plugins", "stream_processors"):  # there is none by default
        assert whole.pop(example)
    told = leaves(whole).keys()
    assert told == leaves(tomllib.loads(dump(Config()))).keys() | BESIDES


def leaves(table: dict[str, object], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Each value by the keys that lead to it."""
    found: dict[tuple[str, ...], object] = {}
    for key, value in table.items():
        place = (*prefix, key)
        found |= leaves(value, place) if isinstance(value, dict) else {place: value}
    return found


def page(unpacked: Path, name: str) -> str:
    path = unpacked / f"usr/share/man/man{name[-1]}/{name}.gz"
    shown = subprocess.run(["zcat", str(path)], capture_output=True, text=True, check=True)
    return shown.stdout


def test_the_manual_of_the_configuration_has_every_key_and_its_default(unpacked: Path) -> None:
    text = page(unpacked, "lighter-config.toml.5")
    for place, value in leaves(tomllib.loads(dump(Config()))).items():
        key = place[-1]
        said = f"\\(dq{value}\\(dq" if isinstance(value, str) else str(value).lower()
        assert f'.BR {key} " = {said}"\n' in text, place


def test_the_manual_pages_have_every_command_and_keep_examples(unpacked: Path) -> None:
    text = page(unpacked, "ctl.1")
    for command in ("run", "tasks", "images import", "containers create", "system shims"):
        assert f".SS {command}\n" in text, command
    assert ".nf\nctl version\nctl version \\-\\-format json\n.fi\n" in text
    assert "@OPTIONS@" not in text and "@COMMANDS@" not in text
    assert f"Lighter {VERSION}" in text
    assert ".SS config check\n" in page(unpacked, "lighterd.8")


@pytest.mark.parametrize("kind", ["lighter", CORE, COMPAT, "lighter-selinux"])
def test_a_package_says_who_may_use_it_and_how(kind: str, rpms: dict[str, Path]) -> None:
    described = query(rpms[kind], "%{LICENSE}|%{SUMMARY}|%{VERSION}|%{EPOCH}|%{OBSOLETES}")
    assert re.fullmatch(rf".*Apache-2.0.*\|\S.*\|{VERSION}\|\(none\)\|\(none\)", described)


def test_containers_have_a_minute_wherever_they_are_stopped(
    rpms: dict[str, Path], unpacked: Path
) -> None:
    """At a removal and at a shutdown the same, and systemd waits longer than that."""
    command = "/usr/bin/ctl system stop-containers --timeout 60s --manager /usr/bin/lighterd"
    scripts = query(rpms["lighter"], "", "--scripts")
    removal = scripts.partition("preuninstall scriptlet")[2].partition("scriptlet (using")[0]
    assert f"\n    {command} || :\n" in removal
    unit = (unpacked / "usr/lib/systemd/system/lighter-containers.service").read_text()
    assert f"\nExecStop={command}\n" in unit
    assert "\nTimeoutStopSec=120\n" in unit


def test_who_runs_containers_on_the_manager_is_stopped_before_they_are() -> None:
    """Units stop in the reverse order of their start (systemd.unit(5), Before=)."""
    unit = (TOP / "packaging/rpm/lighter-containers.service").read_text()
    before = re.findall(r"^Before=(.*)$", unit, re.M)
    assert {"docker.service", "kubelet.service"} <= set(" ".join(before).split())


def test_the_manager_has_file_systems_and_network_from_before_it_starts_until_it_has_ended(
    unpacked: Path,
) -> None:
    for name, earlier in (
        ("lighterd", {"local-fs.target", "remote-fs.target", "network-online.target"}),
        ("lighter-containers", {"lighterd.service", "remote-fs.target"}),
    ):
        unit = (unpacked / f"usr/lib/systemd/system/{name}.service").read_text()
        after = re.findall(r"^After=(.*)$", unit, re.M)
        assert earlier <= set(" ".join(after).split())
        assert "Wants=network-online.target" not in unit, "a restart would wait for a network"
        assert f"\nRequiresMountsFor={Config().root}\n" in unit


def test_what_is_mounted_for_containers_is_not_relabelled(rpms: dict[str, Path]) -> None:
    """The roots of those that run are below the state directory."""
    scripts = query(rpms["lighter-selinux"], "", "--scripts")
    relabelled = [line.split() for line in scripts.splitlines() if "restorecon -" in line]
    state = [words for words in relabelled if Config().state in words]
    assert state and not any("R" in words[1] for words in state)


def test_the_group_and_the_directories_are_as_the_manager_makes_them(unpacked: Path) -> None:
    def said(path: str) -> list[list[str]]:
        text = (unpacked / path).read_text()
        return [line.split() for line in text.splitlines() if line and line[0] != "#"]

    assert said("usr/lib/sysusers.d/lighter.conf") == [["g", "lighter", "-"]]
    assert said("usr/lib/tmpfiles.d/lighter.conf") == [
        ["d", "/run/lighter", "0711", "root", "root", "-"],
        ["d", "/var/lib/lighter", "0700", "root", "root", "-"],
    ]
