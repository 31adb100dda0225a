"""The bench's arithmetic and its page: what it counts as whose, and what it says of it."""

import contextlib
import importlib
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NAMES = (
    "measure",
    "exits",
    "accounting",
    "tables",
    "history",
    "report",
    "peer",
    "peers",
    "growth",
    "bare",
    "memory",
    "api",
    "images",
    "limit",
    "life",
    "rows",
    "waterfall",
)


def modules() -> list[ModuleType]:
    """Of the bench, which is no package. Their names are taken back: others have the same."""
    others = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(BENCH))
    try:
        spec = spec_from_file_location("bench_main", BENCH / "__main__.py")
        assert spec is not None and spec.loader is not None
        main = module_from_spec(spec)
        spec.loader.exec_module(main)
        return [*(importlib.import_module(name) for name in NAMES), main]
    finally:
        sys.path.remove(str(BENCH))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(others)


measure, exits, accounting, tables, history, report, peer, *rest, waterfall, main = modules()
_, growth, *_ = rest
Row, Ended, Taken = measure.Row, exits.Ended, accounting.Taken
MANAGER, SPAWNER, SHIM, OTHER = 100, 200, 300, 900


def stats(version: int = 16, **given: int) -> bytes:
    data = bytearray(400)
    struct.pack_into("=H", data, 0, version)
    struct.pack_into("=Q", data, 24, given.get("waited_ns", 0))
    struct.pack_into("=Q", data, 72, given.get("cpu_ns", 0))
    data[80:84] = b"runc"
    struct.pack_into("=II", data, 128, given.get("pid", 0), given.get("parent", 0))
    struct.pack_into("=QQQ", data, 144, given.get("life_us", 0), 3, 4)
    struct.pack_into("=I", data, 368, given.get("process", 0))
    return bytes(data)


def told(data: bytes) -> list[Any]:
    thread = exits.attribute(1, struct.pack("=I", 7)) + exits.attribute(3, data)
    whole = exits.attribute(2, struct.pack("=I", 7)) + exits.attribute(3, data)
    return list(exits.threads(exits.attribute(4, thread) + exits.attribute(5, whole)))


def test_an_end_is_read_and_the_whole_of_its_process_is_not_counted_again() -> None:
    data = stats(cpu_ns=5_000_000, pid=8, process=7, parent=6, life_us=9, waited_ns=2)
    assert told(data) == [Ended(8, 7, 6, "runc", 5_000_000, 3, 4, 9, 2)]


@pytest.mark.parametrize("version", [11, 15])
def test_statistics_whose_fields_stand_elsewhere_are_refused(version: int) -> None:
    with pytest.raises(measure.CommandFailed, match=f"version {version}"):
        told(stats(version))


def snapshot(threads: dict[int, tuple[int, str, int]], **more: Any) -> Any:
    made = {
        tid: accounting.Thread(process, part, Taken(cpu_ns))
        for tid, (process, part, cpu_ns) in threads.items()
    }
    return accounting.Snapshot(made, **more)


def ended(pid: int, parent: int, name: str, cpu_ns: int, process: int = 0, life_us: int = 0) -> Any:
    return Ended(pid, process or pid, parent, name, cpu_ns, 0, 0, life_us)


LIVING = {
    MANAGER: (MANAGER, accounting.MAIN, 1000),
    101: (MANAGER, accounting.PYTHON, 50),
    SPAWNER: (SPAWNER, accounting.SPAWNER, 70),
}


def test_time_is_counted_with_the_part_that_spent_it() -> None:
    before = snapshot({**LIVING, SHIM: (SHIM, accounting.SHIM, 10)})
    after = snapshot({**LIVING, MANAGER: (MANAGER, accounting.MAIN, 1400)})
    found = accounting.account(
        before,
        after,
        [
            ended(31, 30, "runc:[2:INIT]", 4, life_us=1),  # the runtime's, which tells it later
            ended(30, SHIM, "runc", 20, life_us=50),
            ended(33, 30, "runc", 3, process=30),
            ended(32, SHIM, "true", 6, life_us=40),
            ended(SHIM, SPAWNER, "lighter-shim --", 25, life_us=9000),
            ended(102, os.getpid(), "event_engine", 2, process=MANAGER),
            ended(40, os.getpid(), "ctl", 11, life_us=70),
            ended(41, os.getpid(), "ctl", 1, process=40),
            ended(50, SPAWNER, "lighter-worker ", 9, life_us=80),
            ended(OTHER, 901, "runc", 5000, life_us=5000),
        ],
    )
    assert {part: taken.cpu_ns for part, taken in found.parts.items() if taken.cpu_ns} == {
        accounting.MAIN: 400,
        accounting.GRPC: 2,
        accounting.SHIM: 15,
        accounting.RUNTIME: 27,
        accounting.CONTAINER: 6,
        accounting.CTL: 12,
        accounting.WORKER: 9,
    }
    assert found.lives_us == {
        accounting.RUNTIME: [50],
        accounting.CONTAINER: [40],
        accounting.CTL: [70],
        accounting.WORKER: [80],
    }


def test_what_a_parent_heard_beyond_last_words_was_the_ending() -> None:
    before = snapshot(
        {**LIVING, SHIM: (SHIM, accounting.SHIM, 10)},
        children_ns={SPAWNER: 500, SHIM: 30},
        own_children_ns=1000,
    )
    # The shim had 10 of its own and 30 by children; both are among what the spawner heard now.
    after = snapshot(LIVING, children_ns={SPAWNER: 500 + 30 + 25 + 8}, own_children_ns=1000 + 40)
    last = [ended(SHIM, SPAWNER, "lighter-shim --", 25), ended(40, os.getpid(), "ctl", 33)]
    assert accounting.account(before, after, last).ending_ns == 8 + 7


def test_time_waited_for_a_processor_is_shown_apart_and_in_the_sum() -> None:
    def manager(waited_ns: int) -> Any:
        thread = accounting.Thread(MANAGER, accounting.MAIN, Taken(1, waited_ns=waited_ns))
        return accounting.Snapshot({MANAGER: thread, SPAWNER: thread})

    after = manager(4_000_000)
    after.threads[MANAGER].taken.cpu_ns = 10_000_000
    taken = accounting.account(manager(1_000_000), after, [])
    measured = waterfall.Measured(waterfall.Work("w", 2, lambda: None, ends_are_heard=False))
    measured.add(taken, [0.1])
    assert {row.part: row.median("waited") for row in measured.rows()} == {
        waterfall.WALL: None,
        accounting.MAIN: 3,
        waterfall.ALL: 3,
    }


def rows_by_size(idle: dict[int, float]) -> list[Any]:
    return [
        Row("idle", "%", {"lighter": [share], "containerd": [1]}, at_most=0.1, size=size)
        for size, share in idle.items()
    ]


def test_a_bound_must_hold_at_every_size() -> None:
    assert "<= 0.1 %: yes" in tables.by_size(rows_by_size({1: 0.02, 10: 0.1}))
    shown = tables.by_size(rows_by_size({10: 0.2, 1: 0.02}))
    assert "<= 0.1 %: NO" in shown
    assert shown.splitlines()[0].split("|")[3:5] == [" 1    ", " 10  "]


def test_a_spread_about_a_negative_median_is_positive() -> None:
    row = Row("added", "ms", {"lighter": [-4, -6, -5, -7, -5]})
    assert 0 < row.spread("lighter") < 1


def test_a_bound_of_some_sizes_names_them() -> None:
    rows = [
        Row("listed", "s", {"lighter": [0.5 * size]}, at_most=most, size=size)
        for size, most in ((1, None), (2, 1.0), (3, None))
    ]
    assert "<= 1 s at 2: yes" in tables.by_size(rows)


@pytest.mark.parametrize(
    ("samples", "spread"), [([5], None), ([2, 6], 0.5), ([2, 4, 5], 0.375), ([1, 2, 3, 4], 0.5)]
)
def test_a_spread_of_few_samples_is_half_their_range(samples: list[float], spread: float) -> None:
    assert Row("w", "s", {"lighter": samples}).spread("lighter") == spread


def test_of_a_side_that_varies_by_more_than_its_median_no_ratio_is_made() -> None:
    wild = Row("w", "s", {"containerd": [1, 1, 19, 23], "lighter": [1]}, bound=0.5, at_most=2)
    assert wild.ratio("lighter", "containerd") is None
    shown = tables.side_by_side([wild])
    assert "10 (1 to 23)" in shown and " x" not in shown and "<= 2 s: yes" in shown
    assert "no ratio: containerd varies by more than the median" in shown
    steady = Row("w", "s", {"containerd": [18, 19, 20], "lighter": [19]}, bound=0.5)
    assert tables.verdict(steady) == "1.00 x, <= 0.5 x: NO"


def test_each_side_begins_as_often_as_the_others() -> None:
    orders = ["".join(measure.in_turn("abc", turn)) for turn in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]
    assert measure.in_turn([], 3) == []


def test_every_program_is_started_by_its_path() -> None:
    found = measure.found(["sh", "-c", "true"])
    assert os.path.isabs(found[0]) and found[1:] == ["-c", "true"]
    assert measure.found(["no-such-program"]) == ["no-such-program"]


class Side(peer.Peer):  # type: ignore[misc]
    """A manager that is none: containers are numbers."""

    def __init__(self, name: str, shims: int = 0) -> None:
        self.name = name
        self.shims = shims
        self.begun: list[str] = []

    def client(self, *_words: str) -> list[str]:
        return ["sleep", "100"]

    def detach_argv(self, container: str) -> list[str]:
        self.begun.append(container)
        return [self.name, container]

    def running(self) -> int:
        return len(self.begun)

    def monitors(self) -> list[int]:
        return list(range(self.shims))


Side.__abstractmethods__ = frozenset()


def test_a_lost_monitor_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_MONITORS_S", 0)
    assert len(Side("lighter", 100).monitors_of(100)) == 100
    with pytest.raises(measure.CommandFailed, match="lighter has 99 monitors of 100"):
        Side("lighter", 99).monitors_of(100)


def test_who_takes_too_long_for_an_answer_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_POLL_S", 0.01)
    assert peer.Peer.running(Side("lighter")) == 0


def test_both_sides_start_their_containers_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def together(_width: int, argvs: Iterator[list[str]]) -> float:
        (name,) = {argv[0] for argv in argvs}
        order.append(name)
        return 2.0

    monkeypatch.setattr(growth, "together", together)
    sides = [Side("containerd"), Side("lighter")]
    row = growth._start(sides, [f"c{number}" for number in range(2 * growth.CHUNK + 10)])
    assert order == ["containerd", "lighter", "lighter", "containerd", "containerd", "lighter"]
    assert row.samples["lighter"] == [growth.CHUNK / 2, growth.CHUNK / 2, 5]
    assert sides[0].begun == sides[1].begun and len(set(sides[0].begun)) == len(sides[0].begun)


def test_each_side_is_idle_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def spending(peer: Any, _exits: Any) -> Any:
        nonlocal clock
        clock += 5  # which the other one's rest takes
        return lambda: 1e9 if peer.name == "first" else 0.5e9

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(growth, "_spending", spending)
    monkeypatch.setattr(growth, "monotonic", lambda: clock)
    monkeypatch.setattr(growth, "sleep", sleep)
    monkeypatch.setattr(growth, "Exits", lambda: contextlib.nullcontext())
    row = growth._idle([Side("first"), Side("second")], 10, 5)
    assert row.samples == {"first": [10.0], "second": [10.0]}


def waterfall_rows(cpu_ms: float) -> list[Any]:
    return [Row("run", "ms", {"processor": [cpu_ms], "kernel": [1]}, part="ctl")]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    (tmp_path / "docs").mkdir()

    def save(part: str, rows: list[Any], commit: str, day: int) -> str:
        about = {**report.facts({"runc": "1"}), "commit": commit}
        about["measured_at"] = f"2026-01-{day:02}T00:00:00Z"
        report.save(part, rows, about)
        return (tmp_path / "docs/performance.md").read_text()

    return save


def test_the_page_has_the_newest_waterfall_and_the_one_before(kept: Any) -> None:
    assert "first figure at" not in kept("waterfall", waterfall_rows(11), "aaaa", 1)
    kept("waterfall", waterfall_rows(33), "cccc", 3)
    page = kept("waterfall", waterfall_rows(22), "bbbb", 2)
    assert "first figure at bbbb" in page and "aaaa" not in page
    (line,) = [line for line in page.splitlines() if line.startswith("| ctl")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["ctl", "33", "1", "", "", "22"]


def test_memory_has_a_column_for_each_python(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(python: str, commit: str, day: int, value: float) -> str:
        monkeypatch.setattr(report.platform, "python_version", lambda: python)
        row = Row("PSS of a shim", "MB", {"lighter": [value]}, at_most=2.0)
        page: str = kept("memory", [row], commit, day)
        return page

    measured("3.12.1", "aaaa", 1, 0.5)
    measured("3.12.4", "bbbb", 2, 1.25)
    page = measured("3.11.2", "cccc", 3, 2.5)
    (line,) = [line for line in page.splitlines() if line.startswith("| PSS of a shim")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["2.5", "1.25", "<= 2 MB: NO, yes"]
    assert "| Python 3.11.2, at cccc | Python 3.12.4, at bbbb |" in page


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("error", [OSError("no room"), RuntimeError("x" * 999), KeyError()])
def test_a_part_that_fails_keeps_what_it_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    def part_rows(*_: object) -> Iterator[Any]:
        yield rows_by_size({10: 0.05})[0]
        raise error

    monkeypatch.setattr(main, "available", list)
    monkeypatch.setattr(main, "run", lambda _argv: "runc version 1\n")
    monkeypatch.setattr(main, "part_rows", part_rows)
    assert not main.measured("growth", quick=False)
    page = (tmp_path / "docs/performance.md").read_text()
    assert f"**Ended early: {type(error).__name__}: " in page and "| idle, %" in page
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(main, "part_rows", lambda *_: (row for row in rows_by_size({10: 0.05})))
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(report, "write_page", lambda: 1 / 0)
        assert not main.measured("growth", quick=False)
    assert main.measured("growth", quick=False)
    assert "Ended early" not in (tmp_path / "docs/performance.md").read_text()


def test_a_row_of_another_name_stays_in_the_history(kept: Any) -> None:
    (old,) = history.RENAMED
    kept("containers", [Row(old, "s", {"lighter": [1]})], "aaaa", 1)
    ((rows, _about),) = report.results("containers")
    assert rows[0].work in history.DRAWN


def test_the_page_says_where_the_roots_were(kept: Any) -> None:
    assert report.filesystem("/proc/self") == "proc"
    assert "; roots in /tmp (" in kept("growth", rows_by_size({1: 1}), "aaaa", 1)


def test_results_of_before_there_were_sizes_are_read(kept: Any, tmp_path: Path) -> None:
    kept("containers", [Row("w", "s", {"lighter": [1]})], "aaaa", 1)
    (file,) = (tmp_path / "results").iterdir()
    result = json.loads(file.read_text())
    for row in result["rows"]:
        del row["size"], row["part"]
    file.write_text(json.dumps(result))
    ((rows, _about),) = report.results("containers")
    assert rows[0].median("lighter") == 1 and rows[0].size is None


def test_the_history_is_drawn_with_a_point_for_each_commit() -> None:
    work, unit = history.DRAWN[0], "ms"
    results = [
        ([Row(work, unit, {"lighter": [value], "containerd": [20]})], about(day))
        for day, value in ((3, 30.0), (1, 10.0), (2, 20.0))
    ]
    # In another unit, and a row that only one commit has: neither is drawn.
    results.append(([Row(work, "s", {"lighter": [1.0]})], about(0)))
    results[0][0].append(Row(history.DRAWN[1], unit, {"lighter": [1.0]}))
    drawing = ElementTree.fromstring(history.drawing(results))
    (panel,) = drawing.findall("{*}g")
    circles = list(panel.findall("{*}circle"))
    assert len(circles) == 6
    lighter = [float(c.get("cy", "")) for c in circles if c.get("fill") == "#1f6feb"]
    assert lighter == sorted(lighter, reverse=True)  # oldest first, and more is higher up
    assert [text.text for text in panel.findall("{*}text")][-2:] == ["commit1", "commit3"]


def about(day: int) -> dict[str, Any]:
    return {"commit": f"commit{day}", "measured_at": f"2026-01-{day + 1:02}T00:00:00Z"}


@pytest.mark.parametrize(("value", "top"), [(0, 1), (0.24, 0.3), (1, 1), (145, 150), (801, 1000)])
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert history.rounded_up(value) == pytest.approx(top)


def test_a_signal_waits_until_things_are_removed() -> None:
    done = []

    def stop(signum: int, _frame: object) -> None:
        raise SystemExit(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit), measure.undisturbed():
            signal.raise_signal(signal.SIGTERM)
            done.append("removed")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["removed"]
