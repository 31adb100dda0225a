"""Where output goes: docker's log drivers and options, log URIs, FIFOs; what `logs` shows of it."""

import os
import re
import signal
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.harness import Lighterd, await_that
from tests.images import REFERENCE

pytestmark = pytest.mark.shared_lighterd


def options(lighterd: Lighterd, *flags: str) -> dict[str, object]:
    lighterd.ctl("containers", "create", *flags, REFERENCE, "c", "true", check=True)
    with lighterd.client() as client:
        found: dict[str, object] = client.call("containers", "get", id="c")["container"]["options"]
    lighterd.ctl("rm", "c", check=True)
    return dict(found["log"])  # type: ignore[call-overload]


def test_dockers_words_for_a_log(lighterd: Lighterd) -> None:
    ours = {"driver": "file", "max_size": 1 << 20, "max_file": 3}
    docker = ("--log-opt", "max-size=1m", "--log-opt", "max-file=3", "--log-opt", "mode=blocking")
    assert options(lighterd, "--log-driver", "json-file", *docker) == ours
    assert options(lighterd, "--log-driver", "local", *docker) == ours
    assert options(lighterd, "--log-opt", "max-size=-1")["max_size"] == 0
    for wrong, words in (
        (("--log-driver", "awslogs"), b"--log-uri binary:///PROGRAM"),
        (("--log-opt", "tag=x"), b"it cannot be had"),
        (("--log-opt", "max-file=0"), b"it cannot be had"),
        (("--log-opt", "compress=true"), b"it cannot be had"),
        (("--log-driver", "syslog", "--log-opt", "x=y"), b"tag=\xe2\x80\xa6, syslog-address="),
    ):
        refused = lighterd.ctl("run", *wrong, REFERENCE, "c", "true")
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
    for uri in ("syslog://x", "file://relative", "binary://", "/tmp/x", "binary:///proc/1/exe"):
        refused = lighterd.ctl("run", "--log-uri", uri, REFERENCE, "c", "true")
        assert refused.returncode == 125 and refused.stderr.count(b"\n") == 1, uri


def test_the_configuration_bounds_a_log_that_no_flag_does(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    keys = '[plugins."io.lighter.v1".log]\nmax_size = 1000\nmax_file = 3\n'
    lighterd = make_lighterd(config=f"version = 3\n{keys}").start()
    lighterd.import_busybox()
    assert options(lighterd) == {"driver": "file", "max_size": 1000, "max_file": 3}
    assert options(lighterd, "--log-max-file", "5")["max_size"] == 1000
    assert options(lighterd, "--log-opt", "max-size=0")["max_file"] == 3
    logs = lighterd.root / "logs/default"
    for name, flags, files in (("few", (), 3), ("one", ("--log-max-size", "0"), 1)):
        lighterd.ctl("run", *flags, REFERENCE, name, "seq", "200000", check=True)
        assert len(list((logs / name).iterdir())) == files, name
        lighterd.ctl("rm", name, check=True)


def test_syslog_gets_each_line_and_logs_shows_them_too(lighterd: Lighterd, tmp_path: Path) -> None:
    """By a datagram socket and UDP; a receiver that is away or slow holds up nothing."""
    path = tmp_path / "log"
    local = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    local.bind(str(path))
    net = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    net.bind(("127.0.0.1", 0))
    script = "echo one; echo -n two >&2"
    with local, net:
        for receiver, address, pattern in (
            (local, f"unixgram://{path}", r"<%d>\w{3} [ \d]\d [\d:]{8} t/c: %s"),
            (net, f"udp://127.0.0.1:{net.getsockname()[1]}", r"<%d>1 \S+Z \S+ t/c - - - %s"),
        ):
            receiver.settimeout(20)
            words = ("--log-driver", "syslog", "--log-opt", f"syslog-address={address}")
            words += ("--log-opt", "syslog-facility=local1", "--log-opt", "tag=t/{{.Name}}")
            lighterd.ctl("run", "-d", *words, REFERENCE, "c", "sh", "-c", script, check=True)
            got = sorted(receiver.recv(4096).decode() for _ in range(2))
            for said, (priority, line) in zip(got, ((17 << 3 | 3, "two"), (17 << 3 | 6, "one")),
                                              strict=True):  # fmt: skip
                assert re.fullmatch(pattern % (priority, line), said), said
            await_that(lambda: b"one\n" in lighterd.ctl("logs", "c").stdout, 20, "logs")
            lighterd.ctl("rm", "-f", "c", check=True)
    path.unlink()
    words = ("--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{path}")
    done = lighterd.ctl("run", *words, REFERENCE, "c", "sh", "-c", "seq 3", check=True)
    assert done.stdout == b"1\n2\n3\n"
    shown = lighterd.ctl("logs", "c", check=True)
    assert b"3 lines were not taken by syslog" in shown.stdout + shown.stderr
    for wrong in ("tcp+tls://127.0.0.1:514", "tcp://localhost", "udp://localhost", "/dev/log"):
        words = ("--log-driver", "syslog", "--log-opt", f"syslog-address={wrong}")
        refused = lighterd.ctl("run", *words, REFERENCE, "d", "true")
        assert refused.returncode == 125 and b"udp://ADDRESS" in refused.stderr


def test_syslog_over_tcp(lighterd: Lighterd) -> None:
    """Frames with their length; the last line of one that ends at once, too; lost ones are told."""
    script = "echo one; echo -n two >&2"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        words = ("--log-driver", "syslog", "--log-opt", f"syslog-address={address}")
        flags = ("--log-opt", "tag={{.Name}}")
        lighterd.ctl("run", "-d", *words, *flags, REFERENCE, "c", "sh", "-c", script, check=True)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            got = b""
            while data := connection.recv(4096):  # the shim ends, and with it the connection
                got += data
    frames = []
    while got:
        count, _, got = got.partition(b" ")
        frames.append(got[: int(count)].decode())
        got = got[int(count) :]
    pattern = r"<%d>1 \S+Z \S+ c - - - %s"
    for said, wanted in zip(sorted(frames), ((3 << 3 | 3, "two"), (3 << 3 | 6, "one")),
                            strict=True):  # fmt: skip
        assert re.fullmatch(pattern % wanted, said), said
    lighterd.ctl("rm", "c", check=True)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # a port where nobody listens
        words = (*words[:3], f"syslog-address=tcp://127.0.0.1:{silent.getsockname()[1]}")
        done = lighterd.ctl("run", *words, REFERENCE, "c", "sh", "-c", "seq 3", check=True)
    assert done.stdout == b"1\n2\n3\n"

    def told() -> bool:
        shown = lighterd.ctl("logs", "c", check=True)
        return b"3 lines were not taken by syslog" in shown.stdout + shown.stderr

    await_that(told, 30, "what is lost is told")


def test_a_log_uri_takes_the_output_of_each_start(lighterd: Lighterd) -> None:
    """A file by file://; the same again when the container is started once more."""
    share = lighterd.base / "share"
    share.mkdir()
    uri = f"file://{share}/out"
    script = "echo to-out; echo to-err >&2"
    done = lighterd.ctl("run", "--log-uri", uri, REFERENCE, "c", "sh", "-c", script, check=True)
    assert done.stdout == b""
    assert sorted((share / "out").read_text().split()) == ["to-err", "to-out"]
    lighterd.ctl("tasks", "start", "-d", "c", check=True)
    await_that(lambda: len((share / "out").read_text().split()) == 4, 20, "appended")
    refused = lighterd.ctl("logs", "c")
    assert refused.returncode == 1 and f"goes to {uri}".encode() in refused.stderr


def test_a_logging_program_gets_both_outputs(lighterd: Lighterd) -> None:
    """containerd's contract: descriptors 3, 4 and 5, two words of environment."""
    share = lighterd.base / "share"
    share.mkdir()
    program = share / "logger"
    program.write_text(
        "#!/bin/sh\n"
        f"echo $CONTAINER_NAMESPACE/$CONTAINER_ID $1=$2 >{share}/who\n"
        "exec 5>&-\n"
        f"cat <&4 >{share}/err & cat <&3 >{share}/out\nwait\n"
    )
    program.chmod(0o755)
    uri = f"binary://{program}?key=value"
    script = "echo to-out; echo to-err >&2"
    lighterd.ctl("run", "-d", "--log-uri", uri, REFERENCE, "c", "sh", "-c", script, check=True)
    for name, words in (("out", "to-out\n"), ("err", "to-err\n"), ("who", "default/c key=value\n")):
        await_that(lambda n=name, w=words: _text(share / n) == w, 20, name)


def test_f47_a_logging_program_that_dies_is_told_of_and_holds_nothing_up(
    lighterd: Lighterd,
) -> None:
    share = lighterd.base / "share"
    share.mkdir()
    program = share / "logger"
    program.write_text(f"#!/bin/sh\necho $$ >{share}/pid\nexec 5>&-\nexec cat <&3 >{share}/out\n")
    program.chmod(0o755)
    os.mkfifo(share / "gate")
    uri, script = f"binary://{program}", "echo first; read x </share/gate; seq 100000"
    lighterd.ctl("run", "-d", "--log-uri", uri, "-v", f"{share}:/share", REFERENCE, "c", "sh", "-c",
                 script, check=True)  # fmt: skip
    await_that(lambda: _text(share / "out") == "first\n", 20, "it is read")
    os.kill(int(_text(share / "pid")), signal.SIGKILL)
    report = lighterd.state / "tasks/default/c/shim.log"
    await_that(lambda: "to the logging program: it has ended" in _text(report), 20, "it is told")
    (share / "gate").write_text("go\n")
    assert lighterd.ctl("wait", "c", check=True).stdout == b"0\n"
    lost = sum(len(f"{number}\n") for number in range(1, 100001))
    await_that(lambda: f"{lost} bytes are lost" in _text(report), 20, "and how much is lost")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_fifos_are_made_for_whoever_comes(lighterd: Lighterd) -> None:
    share = lighterd.base / "share"
    script = "read line; echo got $line; echo err >&2"
    lighterd.ctl("run", "-d", "--fifo-dir", str(share), REFERENCE, "c", "sh", "-c", script,
                 check=True)  # fmt: skip
    (place,) = share.iterdir()
    fifos = {path.name: path for path in place.iterdir()}
    assert fifos.keys() == {"c-stdin", "c-stdout", "c-stderr"}
    assert all(stat.S_ISFIFO(path.stat().st_mode) for path in fifos.values())
    fifos["c-stdin"].write_text("words\n")
    assert fifos["c-stdout"].read_text() == "got words\n", "what came before its reader is kept"
    assert fifos["c-stderr"].read_text() == "err\n"


def test_null_io_keeps_and_shows_nothing(lighterd: Lighterd) -> None:
    done = lighterd.ctl("run", "--null-io", REFERENCE, "c", "sh", "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout) == (3, b"")
    refused = lighterd.ctl("logs", "c")
    assert refused.returncode == 1 and b"log driver none" in refused.stderr


def test_logs_until_a_time(lighterd: Lighterd) -> None:
    script = "echo one; read x </share/gate; echo two"
    share = lighterd.base / "share"
    share.mkdir()
    os.mkfifo(share / "gate")
    lighterd.ctl("run", "-d", "-v", f"{share}:/share", REFERENCE, "c", "sh", "-c", script,
                 check=True)  # fmt: skip
    await_that(lambda: lighterd.ctl("logs", "c").stdout == b"one\n", 20, "the first line")
    stamp = datetime.now(UTC).isoformat()
    (share / "gate").write_text("go\n")
    await_that(lambda: lighterd.ctl("logs", "c").stdout == b"one\ntwo\n", 20, "both lines")
    assert lighterd.ctl("logs", "--until", stamp, "c", check=True).stdout == b"one\n"
    assert lighterd.ctl("logs", "--since", stamp, "c", check=True).stdout == b"two\n"
    shown = lighterd.ctl("logs", "-t", "c", check=True).stdout.decode().split()[0]
    assert lighterd.ctl("logs", "--until", shown, "c", check=True).stdout == b"one\n"
    assert lighterd.ctl("logs", "-f", "--until", "0s", "c", check=True).stdout == b"one\ntwo\n"
    assert lighterd.ctl("logs", "-n", "1", "c", check=True).stdout == b"two\n"
