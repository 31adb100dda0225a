"""Options into the request for a container."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.ctl.cli import DURATION, SIGNAL, SIZE
from lighter.ctl.events import MOMENT
from lighter.ctl.flags import filesystem, namespaces, process, security
from lighter.ctl.grammar import BadValue, Integer, UsageError
from lighter.ctl.logs import Since, Tail


def test_the_tutorials_mount() -> None:
    assert filesystem.mount("type=bind,src=/tmp,dst=/hostdir,options=rbind:rw") == {
        "type": "bind",
        "source": "/tmp",
        "destination": "/hostdir",
        "options": ["rbind", "rw"],
    }


def test_a_relative_source_is_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = filesystem.mount("src=data,target=/d,readonly")
    assert found["source"] == f"{tmp_path}/data"
    assert found["options"] == ["ro", "rbind"]


def test_a_tmpfs_needs_no_source() -> None:
    assert filesystem.mount("type=tmpfs,dst=/t,options=size=1m")["options"] == ["size=1m"]


@pytest.mark.parametrize(
    "text", ["", "src=/a", "type=bind,dst=/b", "src=/a,dst=/b,colour=red", "nonsense"]
)
def test_a_wrong_mount_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        filesystem.mount(text)


def test_environment_files_come_first_and_bare_names_are_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\nHERE\nABSENT\nB=x=y\n")
    monkeypatch.setenv("HERE", "here")
    monkeypatch.delenv("ABSENT", raising=False)
    env = process.environment(("A=2", "ABSENT"), (str(file),))
    assert env == ["A=1", "HERE=here", "B=x=y", "A=2", "ABSENT"], "which takes the image's away"


def test_only_line_feeds_end_lines_of_an_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes("A=one\x0ctwo\x85three\u2028four\r\nB=2".encode())
    assert process.environment((), (str(file),)) == ["A=one\x0ctwo\x85three\u2028four", "B=2"]


PLAIN_DURATION = re.compile(r"\d+(\.\d+)?|(\d+(\.\d+)?(ns|us|ms|s|m|h|d))+", re.ASCII)
PLAIN_SIZE = re.compile(r"\d+([kmgt](i?b)?|b)?", re.ASCII | re.IGNORECASE)


@given(st.text("0159.nusmhdkgtiKBx", max_size=8))
def test_what_is_a_duration_and_what_a_size(text: str) -> None:
    for kind, pattern in ((DURATION, PLAIN_DURATION), (SIZE, PLAIN_SIZE)):
        try:
            assert kind.convert(text) >= 0 and pattern.fullmatch(text)
        except BadValue:
            assert not pattern.fullmatch(text)


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000])
def test_a_number_that_no_message_can_carry_is_wrong_usage(digits: str) -> None:
    for kind in (DURATION, SIZE, SIGNAL, Integer(), Integer(0), Tail()):
        with pytest.raises(BadValue):
            kind.convert(digits)
    for size in ("999999999999999999t", "9" * 17 + "g"):
        with pytest.raises(BadValue):
            SIZE.convert(size)


def test_namespaces_to_join() -> None:
    assert namespaces.joined_namespaces(("pid:/proc/7/ns/pid", "net:/run/n")) == {
        "pid": "/proc/7/ns/pid",
        "net": "/run/n",
    }
    with pytest.raises(UsageError):
        namespaces.joined_namespaces(("pid",))


def test_a_seccomp_profile_is_read_by_ctl(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert security.seccomp(None) == "default"
    assert security.seccomp("unconfined") == "unconfined"
    assert security.seccomp(str(profile)) == profile.read_text()


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("1.5s", 1.5), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10x", "-1s", "1m s", "١"])
def test_no_durations(text: str) -> None:
    with pytest.raises(BadValue):
        DURATION.convert(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("7", 7), ("1k", 1024), ("10M", 10 << 20), ("2GiB", 2 << 30)]
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert SIZE.convert(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("sigkill", 9), ("9", 9), ("SIGRTMIN+3", 37), ("64", 64)]
)
def test_signals(text: str, number: int) -> None:
    assert SIGNAL.convert(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "SIGNONE", "TERM+1", "_DFL", "-9"])
def test_no_signals(text: str) -> None:
    with pytest.raises(BadValue):
        SIGNAL.convert(text)


@pytest.fixture
def two_hours_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "EET-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("two_hours_east")
def test_since_takes_a_time_with_its_zone_or_in_the_hosts() -> None:
    for convert in (Since().convert, lambda text: MOMENT.convert(text)[1]):
        assert convert("1970-01-01T01:00:01+01:00") == 1_000_000_000
        assert convert("1970-01-01T00:00:01.123456789Z") == 1_123_456_789
        assert convert("1970-01-01T02:00:01") == 1_000_000_000
        with pytest.raises(BadValue):
            convert("1970-01-01T00:00:01.x")


def test_the_names_in_proc_are_this_processs_own() -> None:
    from lighter.ctl.stdio import Pipes

    with Pipes(stdin=True, stdout=True, stderr=False) as pipes:
        uris = pipes.uris()
        assert uris["stderr"] == ""
        write_end = os.open(uris["stdout"], os.O_WRONLY)
        pipes.give_away()
        os.write(write_end, b"x")
        os.close(write_end)
        assert os.read(pipes.stdout, 10) == b"x"
        assert os.read(pipes.stdout, 10) == b""
