"""The bench's arithmetic and its page: what it counts as whose, and what it says of it."""

import importlib
import json
import os
import signal
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NAMES = ("measure", "exits", "accounting", "tables", "history", "report")


def modules() -> list[ModuleType]:
    """Of the bench, which is no package. Their names are taken back: others have the same."""
    sys.path.insert(0, str(BENCH))
    try:
        return [importlib.import_module(name) for name in NAMES]
    finally:
        sys.path.remove(str(BENCH))
        for name in NAMES:
            sys.modules.pop(name, None)


measure, exits, accounting, tables, history, report = modules()
Row, Ended, Taken = measure.Row, exits.Ended, accounting.Taken
MANAGER, SPAWNER, SHIM, OTHER = 100, 200, 300, 900


def stats(version: int = 16, **given: int) -> bytes:
    data = bytearray(400)
    struct.pack_into("=H", data, 0, version)
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
    data = stats(cpu_ns=5_000_000, pid=8, process=7, parent=6, life_us=9)
    assert told(data) == [Ended(8, 7, 6, "runc", 5_000_000, 3, 4, 9)]


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


def waterfall(cpu_ms: float) -> list[Any]:
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
    assert "first figure at" not in kept("waterfall", waterfall(11), "aaaa", 1)
    kept("waterfall", waterfall(33), "cccc", 3)
    page = kept("waterfall", waterfall(22), "bbbb", 2)
    assert "first figure at bbbb" in page and "aaaa" not in page
    (line,) = [line for line in page.splitlines() if line.startswith("| ctl")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["ctl", "33", "1", "", "22"]


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
