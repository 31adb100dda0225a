"""What was measured, for people and programs: tables, JSON, docs/performance.md, its drawing.

The parts of the bench are saved apart, and the page shows the newest of each, so that one can be
measured anew without the others.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import history
import tables
from measure import Row

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
DRAWING = "performance-history.svg"
_ALIKE = "seccomp off, no log, overlayfs, loopback network only"
MEMORY = "memory"
ROOTS = "/tmp"  # of both sides, but where a part says otherwise
# Of each part: its heading, the settings of both sides, and what its tables mean.
PARTS = {
    "containers": (
        "Containers",
        f"{_ALIKE}, on both sides",
        """\
Commands, lives, output and the rows of the API are taken in turns, and who begins changes. With a
crowd (the rows with many containers) one side has done everything before the other begins, and who
begins changes too. Calls of Lighter's own API are Lighter's alone.

After a `kill -9` Lighter lists from its database what was recorded as running, and connects to its
shims behind that, as the next row tells; containerd connects to its shims before it answers.""",
    ),
    "growth": (
        "How cost grows",
        f"{_ALIKE}, on both sides",
        """\
The columns are numbers of running containers, all of them started under one manager. Both sides
start theirs in turns, at most 50 at a time and each time the other one first, so that each starts
beside as many of the other's; a sample of the rate is one such turn, on the way from none to all.
containerd is not followed as far as Lighter, which saves time and says nothing about containerd: in
columns that it has no figure in, Lighter was alone.

While idle, the processor time of all processes but the containers' own counts, of each side by its
own clock from when it had come to rest. Memory is read once of each size. After a `kill -9` Lighter
lists from its database what was recorded as running, and connects to its shims behind that;
containerd connects to its shims before it answers.""",
    ),
    MEMORY: (
        "Memory of shims",
        _ALIKE,
        """\
Lighter alone, in a column for each version of Python that it was measured with. The packages run on
3.12. PSS divides a page among those that have it, so it depends on what else there is: the shims of
a row are all that run.""",
    ),
    "waterfall": (
        "Where the time goes",
        f"{_ALIKE}; for the pull, root and registry in a tmpfs",
        """\
Lighter alone, per work: processor time of each process, and of the manager's threads; how much of
it was spent in the kernel; how long they were ready and waited for a processor; and how long
processes lived that came and went with the work. The time by the clock is not the sum of these:
processes work side by side, go on after the answer, and sleep while they wait for each other or for
the disk. Processor time is exact, and what a process does after the answer is in it; the kernel's
share is taken in ticks. A process goes on ending after its last word, in the kernel. What the
kernel's own threads did, they did for the whole machine. The runtime's init becomes the
container's program, so one process is both.""",
    ),
    "crun": (
        "With crun",
        f"{_ALIKE}, on both sides",
        "The same with crun as the runtime, which leaves more of the whole to its manager.",
    ),
    "images": (
        "Images",
        "roots, registry and archives in a tmpfs, overlayfs, loopback network only, on both sides",
        "",
    ),
}


def facts(versions: dict[str, str]) -> dict[str, Any]:
    """Where and of what it was measured: figures mean nothing without."""
    return {
        "commit": commit(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "roots": f"in {ROOTS} ({filesystem(ROOTS)})",
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "nice": os.nice(0),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "transparent_hugepage": _setting("/sys/kernel/mm/transparent_hugepage/enabled"),
        "python": platform.python_version(),
        "versions": versions,
    }


def commit() -> str:
    """The checkout's commit, "-dirty" when the packaged folders differ from it."""
    git = ["git", "-C", str(REPOSITORY)]
    found = subprocess.run(
        [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True
    )
    folders = ["daemon", "shim", "proto", "ctl"]
    changed = subprocess.run([*git, "status", "--porcelain", *folders], capture_output=True)
    return (found.stdout.strip() or "unknown") + ("-dirty" if changed.stdout.strip() else "")


def filesystem(path: str) -> str:
    """The kind that `path` is on."""
    kinds: dict[Path, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        kinds[Path(fields.split()[4])] = source.split()[0]
    where = Path(path).resolve()
    return next((kinds[each] for each in (where, *where.parents) if each in kinds), "unknown")


def _setting(path: str) -> str:
    """The chosen word of a sysfs file such as "always [madvise] never"."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return "absent"
    return text[text.index("[") + 1 : text.index("]")]


def shown(part: str, rows: Sequence[Row], before: "Measured | None" = None) -> str:
    """The rows of a part in the form that it has. What was measured `before` is compared."""
    if part == "growth":
        return tables.by_size(rows)
    if part == MEMORY:
        return tables.of_lighter(rows)
    if part == "waterfall":
        return (
            tables.waterfalls(rows, before[0], before[1]["commit"])
            if before
            else (tables.waterfalls(rows))
        )
    return tables.side_by_side(rows)


def as_json(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    return {
        "about": about,
        "rows": [
            {
                "work": row.work,
                "unit": row.unit,
                "bound": row.bound,
                "at_most": row.at_most,
                "smaller_is_better": row.smaller_is_better,
                "size": row.size,
                "part": row.part,
                "medians": {peer: row.median(peer) for peer in row.samples},
                "ratio": row.ratio("lighter", "containerd"),
                "samples": row.samples,
            }
            for row in rows
        ],
    }


def save(part: str, rows: Sequence[Row], about: dict[str, Any]) -> Path:
    """Write the JSON of a part, and the page anew. Returns the JSON's path."""
    of_python = f"-{about['python']}" if part == MEMORY else ""
    path = RESULTS / f"{about['commit']}-{part}{of_python}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(as_json(rows, about), indent=1) + "\n")
    write_page()
    return path


def write_page() -> None:
    """docs/performance.md and its drawing, of all results that are there."""
    docs = REPOSITORY / "docs"
    drawn = [result for part in ("containers", "images") for result in results(part)]
    (docs / DRAWING).write_text(history.drawing(drawn))
    (docs / "performance.md").write_text(page())


Measured = tuple[list[Row], dict[str, Any]]


def results(part: str) -> list[Measured]:
    """The rows and facts of every run that is kept of a part, oldest first."""
    name = f"*-{part}-*.json" if part == MEMORY else f"*-{part}.json"
    found = [json.loads(path.read_text()) for path in RESULTS.glob(name)]
    found.sort(key=lambda result: str(result["about"]["measured_at"]))
    fields = ("work", "unit", "samples", "bound", "at_most", "smaller_is_better", "size", "part")
    return [
        ([_row({n: row[n] for n in fields if n in row}) for row in one["rows"]], one["about"])
        for one in found
    ]


def _row(given: dict[str, Any]) -> Row:
    return Row(**{**given, "work": history.RENAMED.get(given["work"], given["work"])})


def by_python(measured: Sequence[Measured]) -> list[Row]:
    """The newest rows of each minor version of Python as one, a column for each; oldest first."""
    newest = {about["python"].rpartition(".")[0]: (rows, about) for rows, about in measured}
    found: dict[str, Row] = {}
    for _minor, (rows, about) in sorted(newest.items()):
        column = f"Python {about['python']}, at {about['commit']}"
        for row in rows:
            one = found.setdefault(row.work, Row(row.work, row.unit, at_most=row.at_most))
            one.samples[column] = row.samples["lighter"]
    return list(found.values())


def page() -> str:
    sections = []
    for part in PARTS:
        *earlier, last = [None, *results(part)]
        if last is not None:
            if part == MEMORY:
                last = (by_python(results(part)), last[1])
            sections.append(_section(part, *last, before=earlier[-1]))
    return f"""# Performance

Written by `make bench`; edit bench/report.py instead. Medians of samples, both sides in one run;
each part says what was taken in turns. `±` is half the distance between the quartiles, of two or
three samples half their range. Where that distance is more than the median, the least and the most
sample stand in brackets, and no ratio is made of it. Machines differ: the last column counts.

"Runtime alone" is a bare loop on the runtime, with no manager. It is a measure, but no limit for
Lighter, whose shim does what `runc start` and `runc delete` do without running them, and whose
manager takes the kernel's cgroup lock before the runtime needs it. What Lighter adds is bounded
where each side's runtime processes are taken away. Beside the rates of the API stand those of the
same loop with as many at a time; a ratio that is asked for there can lie above what it reaches.

{"".join(sections)}## History

Medians at the commits that were measured, oldest on the left; the results are in bench/results.
The machine was not the same every time, nor as idle: where all lines move, it was the machine.

![medians by commit]({DRAWING})
"""


def _section(part: str, rows: Sequence[Row], about: dict[str, Any], before: Measured | None) -> str:
    heading, settings, meaning = PARTS[part]
    intro = f"{meaning}\n\n" if meaning else ""
    versions = "\n".join(f"- {name}: {text}" for name, text in about["versions"].items())
    busy = f", load {about['load']:.1f} at the start" if "load" in about else ""
    if about.get("nice"):
        busy += f", all of it at nice {about['nice']}"
    early = f"**Ended early: {about['ended_early']}**\n\n" if "ended_early" in about else ""
    roots = f"; roots {about['roots']}" if "roots" in about and part != "images" else ""
    return f"""## {heading}

{early}{intro}{shown(part, rows, before)}

Measured at commit {about["commit"]} on {about["measured_at"]}: Linux {about["kernel"]}, \
{about["cpus"]} CPUs{busy}, {about["memory_gib"]} GiB, cgroup {about["cgroup"]}, transparent huge \
pages "{about["transparent_hugepage"]}", Python {about["python"]}. Settings: {settings}{roots}.

{versions}

"""
