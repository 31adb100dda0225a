"""Words of flags into the request's fields, and what of them is wrong usage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighter.ctl.flags import devices, filesystem, namespaces, process, resources, runtime, security
from lighter.ctl.grammar import UsageError
from lighter.proto.errors import InvalidArgument


def test_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def seen(text: str) -> tuple[str, ...]:
        return tuple(devices.device(text).values())

    assert seen("/dev/fuse") == ("/dev/fuse", "", "")
    assert seen("/dev/fuse:r") == ("/dev/fuse", "", "r")
    assert seen("/dev/fuse:/in") == ("/dev/fuse", "/in", "")
    assert seen("/dev/fuse:/in:rw") == ("/dev/fuse", "/in", "rw")
    assert seen("here") == (f"{tmp_path}/here", "", "")
    assert devices.is_named("vendor.com/gpu=0") and devices.is_named("a/b=all")
    assert not any(map(devices.is_named, ("/dev/a=b", "./a/b=c", "dev", "a=b", "a/b/c=d")))
    assert devices.gpus("0,1") == devices.gpus("device=0,1") == ["0", "1"]
    assert devices.gpus("all") == ["all"]


def test_limits() -> None:
    assert resources.rlimit("nofile=1:2") == {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}
    assert resources.rlimit("core=-1")["hard"] == resources.UNLIMITED
    assert resources.rlimit("RLIMIT_CPU=9") == {"type": "RLIMIT_CPU", "soft": 9, "hard": 9}
    assert resources.pairs(["/dev/a:b:1m"], "--x", resources.SIZE) == [["/dev/a:b", 1 << 20]]
    assert resources.SizeOrNone().convert("-1") == -1
    assert resources.SizeOrNone().convert("1g") == 1 << 30


def test_namespaces_and_ids() -> None:
    assert namespaces.mode("private", "pid") == namespaces.mode("shareable", "ipc") == "own"
    assert namespaces.mode("container:a", "pid") == "container:a"
    assert namespaces.id_range("0:100000:65536", "--uidmap") == [0, 100000, 65536]


def test_security_options() -> None:
    words = ("seccomp=a=b", "no-new-privileges", "label:disable", "apparmor=p")
    assert security.security_options(words) == {
        "seccomp": "a=b",
        "no-new-privileges": "true",
        "apparmor": "p",
    }
    assert security.labels(words) == {"disable": "true"}


def test_a_file_system_in_memory() -> None:
    plain = filesystem.tmpfs("/run")
    assert plain["options"] == ["noexec", "nosuid", "nodev"]
    assert filesystem.tmpfs("/run:exec,size=1m")["options"] == [
        *("nosuid", "nodev", "exec", "size=1m"),
    ]
    assert filesystem.tmpfs("/run:noexec")["options"] == ["nosuid", "nodev", "noexec"]


def test_a_runtimes_file(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('BinaryName = "crun"\nSystemdCgroup = true\nIoUid = 7\n')
    assert runtime.options_file(str(file)) == {
        "binary_name": "crun",
        "systemd_cgroup": True,
        "io_uid": 7,
    }
    for text in ("BinaryName = 1", "Root = true", "= 1", "IoUid = true"):
        file.write_text(text)
        with pytest.raises(InvalidArgument):
            runtime.options_file(str(file))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((devices.device, text) for text in ("", ":/in", "/a:/b:r:w", "/a::r")),
        *((devices.gpus, text) for text in ("", "0,,1", "count=1")),
        *((resources.rlimit, text) for text in ("nofile", "=1", "a=", "a=1:", "a=x", "a=٣")),
        (lambda text: resources.pairs([text], "--x"), "/dev/a"),
        (lambda text: resources.pairs([text], "--x"), "/dev/a:1m"),
        (lambda text: resources.pairs([text], "--x", resources.SIZE), "/dev/a:fast"),
        (lambda text: namespaces.mode(text, "pid"), "container"),
        (lambda text: namespaces.mode(text, "uts"), "container:a"),
        *((lambda text: namespaces.id_range(text, "--uidmap"), t) for t in ("0:1", "a:b:c")),
        (lambda text: security.labels((text,)), "label=nested:x"),
        *(
            (lambda text: security.security_options((text,)), text)
            for text in ("sausages=1", "no-new-privileges=maybe", "seccomp=")
        ),
        (filesystem.tmpfs, "run"),
    ],
)
def test_what_is_wrong_usage(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


def test_a_file_of_variables_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("\ufeffA=1\r\n\n  # a note\n  B=two words \nC=x\u2028y\n")
    assert process.environment(("D=3",), (str(file),)) == [
        "A=1",
        "B=two words ",
        "C=x\u2028y",
        "D=3",
    ]
    for line in ("export A=1", "A =1", "A\t", "A B"):
        file.write_text(f"Z=1\n{line}\n")
        with pytest.raises(
            InvalidArgument, match=r"env file .*/env: the name .* has a space in it"
        ):
            process.environment((), (str(file),))
