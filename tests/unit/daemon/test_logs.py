"""daemon/tasks/logs: every byte once and in order, while the log grows and rotates."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighter.daemon.tasks import logs
from lighter.daemon.tasks.logs import Chunk, LogReader
from lighter.proto import logchunks
from lighter.proto.daemon_api import STDERR, STDOUT


class Log:
    """A log as a shim writes it; chunk n has the timestamp n, from 1 on."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        directory.mkdir(exist_ok=True)
        self.number = 1
        self.count = 0

    def write(self, *pieces: bytes, stream: int = STDOUT) -> None:
        with (self.dir / logchunks.file_name(self.number)).open("ab") as file:
            for data in pieces:
                self.count += 1
                file.write(logchunks.HEAD.pack(self.count, stream, len(data)) + data)

    def rotate(self) -> None:
        self.number += 1

    def read(self, tail: int | None = None, since: int | None = None) -> list[Chunk]:
        async def collect() -> list[Chunk]:
            reader = LogReader(str(self.dir))
            return [chunk async for chunk in reader.read(tail, since, False, lambda: False)]

        return asyncio.run(collect())

    def text(self, tail: int | None = None, since: int | None = None) -> bytes:
        return b"".join(chunk.data for chunk in self.read(tail, since))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture(params=[1, 700, logs.BATCH_BYTES], ids="batches of {} bytes".format)
def any_batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same result however much is read at a time."""
    monkeypatch.setattr(logs, "BATCH_BYTES", request.param)
    yield


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Log(tmp_path / "none").read() == []
    assert Log(tmp_path / "none").read(tail=3) == []


@pytest.mark.usefixtures("any_batch")
def test_all_files_are_read_in_order_with_stream_and_time(log: Log) -> None:
    log.write(b"a\n", b"b\n")
    log.write(b"e\n", stream=STDERR)
    log.rotate()
    log.write(b"c")
    assert log.read() == [
        Chunk(1, STDOUT, b"a\n"),
        Chunk(2, STDOUT, b"b\n"),
        Chunk(3, STDERR, b"e\n"),
        Chunk(4, STDOUT, b"c"),
    ]


@pytest.mark.usefixtures("any_batch")
def test_since_leaves_older_chunks_out(log: Log) -> None:
    log.write(b"1\n", b"2\n")
    log.rotate()
    log.write(b"3\n")
    assert log.text(since=1) == b"2\n3\n"
    assert log.text(since=3) == b""
    assert log.text(tail=2, since=2) == b"3\n"


def test_a_torn_chunk_at_the_end_is_not_there(log: Log) -> None:
    log.write(b"whole\n")
    with (log.dir / logchunks.file_name(1)).open("ab") as file:
        file.write(logchunks.HEAD.pack(9, STDOUT, 100) + b"only a part")
    assert log.text() == b"whole\n"
    assert log.text(tail=1) == b"whole\n"


def test_other_files_and_links_are_no_logs(log: Log, tmp_path: Path) -> None:
    log.write(b"mine\n")
    secret = Log(tmp_path / "other")
    secret.write(b"secret\n")
    (log.dir / "notes.log").write_bytes(b"x")
    (log.dir / logchunks.file_name(2)).symlink_to(secret.dir / logchunks.file_name(1))
    with pytest.raises(OSError):
        log.text()


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from([b"", b"a", b"\n", b"bb\n", b"c\nd", b"\n\n"])), max_size=4),
    st.integers(0, 8),
    st.sampled_from([1, 600, 1 << 20]),
)
def test_the_tail_is_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], count: int, batch: int
) -> None:
    log = Log(tmp_path_factory.mktemp("tail") / "log")
    for pieces in files:
        log.write(*pieces)
        log.rotate()
    whole = b"".join(piece for pieces in files for piece in pieces)
    # A lone carriage return or the like is not in the alphabet: splitlines is by "\n" here.
    wanted = b"".join(lines_of(whole)[-count:]) if count else b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "BATCH_BYTES", batch)
        assert log.text(tail=count) == wanted
        assert log.text() == whole


@pytest.mark.parametrize("tail", [None, 0, 1])
def test_following_misses_nothing_over_a_rotation(log: Log, tail: int | None) -> None:
    log.write(b"old\n", b"before\n")

    async def follow() -> bytes:
        seen, steps, over = b"", iter(range(6)), False

        def ended() -> bool:
            # Asked before each look: so the log grows between the looks, and at the very last.
            nonlocal over
            step = next(steps, None)
            if step is None:
                over = True
            else:
                log.write(b"%d\n" % step)
                if step % 2:
                    log.rotate()
            return over

        reader = LogReader(str(log.dir))
        async with asyncio.timeout(30):
            async for chunk in reader.read(tail, None, True, ended):
                seen += chunk.data
        return seen

    before = {None: b"old\nbefore\n", 0: b"", 1: b"before\n"}[tail]
    assert asyncio.run(follow()) == before + b"0\n1\n2\n3\n4\n5\n"


def test_files_rotated_away_while_they_are_followed_are_passed_over(log: Log) -> None:
    log.write(b"1\n")

    async def follow() -> bytes:
        seen, looks = b"", 0

        def ended() -> bool:
            nonlocal looks
            looks += 1
            if looks == 2:
                (log.dir / logchunks.file_name(1)).unlink()
                log.number = 5
                log.write(b"5\n")
            return looks == 3

        async with asyncio.timeout(30):
            async for chunk in LogReader(str(log.dir)).read(None, None, True, ended):
                seen += chunk.data
        return seen

    assert asyncio.run(follow()) == b"1\n5\n"


def test_the_log_of_a_later_container_is_not_gone_on_with(log: Log) -> None:
    log.write(b"1\n")
    made_anew = False

    async def follow() -> bytes:
        seen = b""

        def ended() -> bool:
            nonlocal made_anew
            if seen and not made_anew:
                log.write(b"2\n3\n")
                (log.dir / logchunks.file_name(1)).unlink()
                log.write(b"of another\n", b"and more\n")
                made_anew = True
            return False

        async with asyncio.timeout(30):
            reader = LogReader(str(log.dir))
            async for chunk in reader.read(None, None, True, ended, is_anothers=lambda: made_anew):
                seen += chunk.data
        return seen

    assert asyncio.run(follow()) == b"1\n"


def test_the_loop_goes_on_while_a_long_log_is_searched(log: Log) -> None:
    """Half a million chunks that `since` leaves out: nobody else waits for them."""
    piece = logchunks.HEAD.pack(1, STDOUT, 2) + b"x\n"
    for number in (1, 2):
        (log.dir / logchunks.file_name(number)).write_bytes(piece * 250_000)

    async def search() -> None:
        reader = LogReader(str(log.dir))
        assert [c async for c in reader.read(None, 1, False, lambda: True)] == []
        assert [c.data async for c in reader.read(1, None, False, lambda: True)] == [b"x\n"]

    async def turns(work: Coroutine[Any, Any, None]) -> int:
        """How often the loop turns until `work` is done."""
        working = asyncio.create_task(work)
        count = 0
        while not working.done():
            await asyncio.sleep(0)
            count += 1
        await working
        return count

    # Read on the loop itself, it turns once.
    assert asyncio.run(turns(search())) > 1000
