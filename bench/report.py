"""What was measured, for people and programs: a table, JSON, docs/performance.md.

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

from measure import Row

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
_COLUMNS = ("containerd", "lighter", "runc")
# Of each part: its heading and the settings of both sides.
PARTS = {
    "containers": (
        "Containers",
        "seccomp off, no log, overlayfs, loopback network only, on both sides",
    ),
    "images": (
        "Images",
        "roots, registry and archives in a tmpfs, overlayfs, loopback network only, on both sides",
    ),
}


def facts(versions: dict[str, str]) -> dict[str, Any]:
    """Where and of what it was measured: figures mean nothing without."""
    return {
        "commit": commit(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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


def _setting(path: str) -> str:
    """The chosen word of a sysfs file such as "always [madvise] never"."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return "absent"
    return text[text.index("[") + 1 : text.index("]")]


def verdict(row: Row) -> str:
    """How Lighter stands to containerd, and whether that is what is asked for."""
    ratio, median = row.ratio("lighter", "containerd"), row.median("lighter")
    said = [] if ratio is None else [f"{ratio:.2f} x"]
    if row.bound is not None and ratio is not None:
        reached = ratio <= row.bound if row.smaller_is_better else ratio >= row.bound
        said.append(f"{'<=' if row.smaller_is_better else '>='} {row.bound:g} x: {_word(reached)}")
    if row.at_most is not None and median is not None:
        said.append(f"<= {row.at_most:g} {row.unit}: {_word(median <= row.at_most)}")
    return ", ".join(said)


def _word(reached: bool) -> str:
    return "yes" if reached else "NO"


def table(rows: Sequence[Row]) -> str:
    """Markdown, aligned so that it reads in a terminal too."""
    lines = [["work", *_COLUMNS, "lighter : containerd"]]
    for row in rows:
        lines.append([f"{row.work}, {row.unit}", *(_cell(row, p) for p in _COLUMNS), verdict(row)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def _cell(row: Row, peer: str) -> str:
    median, spread = row.median(peer), row.spread(peer)
    if median is None:
        return ""
    return f"{median:.4g}" + (f" ±{spread:.0%}" if spread is not None else "")


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
                "medians": {peer: row.median(peer) for peer in row.samples},
                "ratio": row.ratio("lighter", "containerd"),
                "samples": row.samples,
            }
            for row in rows
        ],
    }


def save(part: str, rows: Sequence[Row], about: dict[str, Any]) -> Path:
    """Write the JSON of a part, and the page anew. Returns the JSON's path."""
    path = RESULTS / f"{about['commit']}-{part}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(as_json(rows, about), indent=1) + "\n")
    (REPOSITORY / "docs" / "performance.md").write_text(page())
    return path


def newest(part: str) -> tuple[list[Row], dict[str, Any]] | None:
    """The rows and facts of a part that were measured last; None when it never was."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"*-{part}.json")]
    if not found:
        return None
    last = max(found, key=lambda result: result["about"]["measured_at"])
    fields = ("work", "unit", "samples", "bound", "at_most", "smaller_is_better")
    return [Row(**{name: row[name] for name in fields}) for row in last["rows"]], last["about"]


def page() -> str:
    sections = []
    for part, (heading, settings) in PARTS.items():
        if (measured := newest(part)) is not None:
            sections.append(_section(heading, settings, *measured))
    return f"""# Performance

Written by `make bench`; edit bench/report.py instead. Medians of samples that were taken in turns,
both sides in one run; `±` is half the distance between the quartiles. Machines differ: what counts
is the last column. `runc` is the runtime alone, the limit for any manager of it.

{"".join(sections)}"""


def _section(heading: str, settings: str, rows: Sequence[Row], about: dict[str, Any]) -> str:
    versions = "\n".join(f"- {name}: {text}" for name, text in about["versions"].items())
    busy = f", load {about['load']:.1f} at the start" if "load" in about else ""
    if about.get("nice"):
        busy += f", all of it at nice {about['nice']}"
    return f"""## {heading}

{table(rows)}

Measured at commit {about["commit"]} on {about["measured_at"]}: Linux {about["kernel"]}, \
{about["cpus"]} CPUs{busy}, {about["memory_gib"]} GiB, cgroup {about["cgroup"]}, transparent huge \
pages "{about["transparent_hugepage"]}", Python {about["python"]}. Settings: {settings}.

{versions}

"""
