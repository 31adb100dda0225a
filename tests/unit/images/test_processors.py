"""Programs on a layer's way to the worker: real ones, run by real workers."""

import asyncio
import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.extensions import StreamProcessor
from lighter.daemon.images import processors as module
from lighter.daemon.images.processors import PLAIN_TAR, Processors
from lighter.daemon.tasks.runtimes import Runtimes
from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
)
from tests.fakes.worker import ForkWorker
from tests.harness import await_that
from tests.processes import own_descriptors
from tests.unit.images.build import tar
from tests.unit.worker.harness import memfd

pytestmark = pytest.mark.root

SECRET = PLAIN_TAR + "+encrypted"
FLIP = r"LC_ALL=C tr '\000-\377' '\200-\377\000-\177'"
DATA = tar({"big": os.urandom(300_000), "file": b"text"})
DEADLINE_S = 20.0


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0x80 for byte in data)


def program(
    script: str, accepts: str = SECRET, returns: str = PLAIN_TAR, name: str = "one"
) -> StreamProcessor:
    return StreamProcessor(name, (accepts,), returns, "sh", ("-c", script), ("KEY=a=b",))


def running(word: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


class Case:
    def __init__(self, target: Path) -> None:
        self.target = target
        self.worker = ForkWorker()

    def apply(
        self,
        data: bytes,
        *configured: StreamProcessor,
        patience_s: float = DEADLINE_S,
        payloads: Mapping[str, bytes] | None = None,
    ) -> dict[str, Any]:
        find = Runtimes({}).find_program
        processors = Processors(self.worker, configured, find, patience_s)
        order = {
            "job": "apply",
            "media_type": SECRET,
            "target": str(self.target),
            "whiteouts": "plain",
        }

        async def steps() -> dict[str, Any]:
            fd = memfd(data)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    return await processors.apply(order, [fd], payloads=payloads)
            finally:
                os.close(fd)

        before = own_descriptors()
        try:
            return asyncio.run(steps())
        finally:
            assert own_descriptors() <= before

    def fails(self, data: bytes, *configured: StreamProcessor, **options: Any) -> LighterError:
        with pytest.raises(LighterError) as caught:
            self.apply(data, *configured, **options)
        return caught.value

    def is_applied(self) -> bool:
        return (self.target / "file").read_bytes() == b"text"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    target = tmp_path / "target"
    target.mkdir()
    return Case(target)


def test_the_worker_gets_what_a_program_makes_of_a_layer(case: Case) -> None:
    done = case.apply(flipped(DATA), program(FLIP))
    assert case.is_applied()
    assert done["plain_bytes"] == len(DATA)
    assert [job["job"] for job in case.worker.jobs] == ["process", "apply"]
    assert case.worker.jobs[-1]["media_type"] == PLAIN_TAR


def test_programs_follow_each_other_until_the_worker_knows_the_type(case: Case) -> None:
    data = flipped(flipped(gzip.compress(DATA))[::1])
    chain = (
        program("cat", "other", "never", "other"),
        program(FLIP, SECRET, "half", "first"),
        program(FLIP, "half", PLAIN_TAR + "+gzip", "second"),
        program("exit 1", SECRET, PLAIN_TAR, "too late"),
    )
    case.apply(data, *chain)
    assert case.is_applied()


def test_sec_58_a_program_gets_its_environment_what_a_client_gave_and_nothing_else(
    case: Case, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = (
        f"cat /proc/self/environ >{out}-env; ls /proc/self/fd >{out}-fds; cat <&3 >{out}; {FLIP}"
    )
    payloads = {"one": b"for it", "two": b"not for it"}
    with out.open("wb") as others:
        os.set_inheritable(others.fileno(), True)
        case.apply(flipped(DATA), program(script), payloads=payloads)
    assert out.read_bytes() == b"for it"
    environ = Path(f"{out}-env").read_bytes().strip(b"\0").split(b"\0")
    wanted = [f"PATH={os.environ['PATH']}", "KEY=a=b", f"STREAM_PROCESSOR_MEDIATYPE={SECRET}"]
    assert {item.decode() for item in environ} - {f"PWD={os.getcwd()}"} == set(wanted)
    assert Path(f"{out}-fds").read_text().split() == ["0", "1", "2", "3", "4"]  # 4 is ls's own


def test_without_anything_given_there_is_no_further_descriptor(case: Case) -> None:
    case.apply(flipped(DATA), program(f"test ! -e /proc/self/fd/3 || exit 8; {FLIP}"))
    assert case.is_applied()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"{FLIP}; exit 1", "one ended with code 1: no word"),
        (f"{FLIP}; kill -9 $$", "one ended with code 137"),
        (f"head -c 100000 | {FLIP}; kill -9 $$", "one ended with code 137"),
        ("exit 3", "one ended with code 3"),
        ("echo the key >&2; echo is wrong >&2; exit 3", "one ended with code 3: the key is wrong"),
    ],
)
def test_a_layer_counts_only_when_every_program_ended_well(
    case: Case, script: str, words: str
) -> None:
    """Also when all that the layer needs had come, and when it was cut short at a file's end."""
    error = case.fails(flipped(DATA), program(script))
    assert isinstance(error, FailedPrecondition)
    assert words in error.message


def test_the_first_of_two_that_fail_is_told(case: Case) -> None:
    error = case.fails(
        flipped(DATA),
        program("head -c 1000; exit 4", SECRET, "half", "first"),
        program(f"{FLIP}; sleep 0.2; exit 5", "half", PLAIN_TAR, "second"),
    )
    assert "first ended with code 4" in error.message


def test_what_is_wrong_with_the_layer_itself_is_the_workers_word(case: Case) -> None:
    error = case.fails(flipped(b"x" * 1_000_000), program(FLIP))
    assert isinstance(error, InvalidArgument)
    assert "ended with" not in error.message


@pytest.mark.parametrize("before", ["", f"head -c 1000 | {FLIP}; ", "yes >&2; "])
def test_a_program_that_gives_nothing_is_ended_with_all_it_started(case: Case, before: str) -> None:
    word = f"1000.{os.getpid()}"
    script = f"(setsid sleep {word} &); {before}sleep {word}"
    error = case.fails(flipped(DATA), program(script), patience_s=0.5)
    assert isinstance(error, DeadlineExceeded)
    assert "nothing came for 0.5 s" in error.message
    await_that(lambda: not running(word), DEADLINE_S, "the program's processes end")


def test_nothing_that_a_program_started_outlives_it(case: Case) -> None:
    word = f"1000.{os.getpid()}"
    case.apply(flipped(DATA), program(f"(setsid sleep {word} 2>&- &); {FLIP}"))
    assert case.is_applied()
    assert not running(word)


def test_a_program_that_does_not_end_after_its_output_is_ended(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDS_S", 0.3)
    word = f"1000.{os.getpid()}"
    error = case.fails(flipped(DATA), program(f"{FLIP}; exec >&- sleep {word}"))
    assert isinstance(error, DeadlineExceeded)
    assert "does not end" in error.message
    await_that(lambda: not running(word), DEADLINE_S, "the program ends")


def test_a_circle_is_refused_before_anything_runs(case: Case) -> None:
    chain = (program("cat", SECRET, "half", "first"), program("cat", "half", SECRET, "second"))
    error = case.fails(DATA, *chain)
    assert isinstance(error, InvalidArgument)
    assert "first, second lead back to" in error.message
    assert not case.worker.jobs


def test_a_program_that_others_may_write_is_not_run(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\ncat\n")
    one = StreamProcessor("one", (SECRET,), PLAIN_TAR, str(path))
    for mode, kind in ((0o777, FailedPrecondition), (0o644, FailedPrecondition)):
        path.chmod(mode)
        assert isinstance(case.fails(DATA, one), kind)
    path.unlink()
    assert isinstance(case.fails(DATA, one), NotFound)
    assert not case.worker.jobs


def test_one_that_cannot_be_executed_says_so(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text("#!/no/such/shell\n")
    path.chmod(0o755)
    error = case.fails(DATA, StreamProcessor("one", (SECRET,), PLAIN_TAR, str(path)))
    assert "one ended with code 127: start " in error.message
