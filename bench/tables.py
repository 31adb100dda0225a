"""Rows as Markdown: side by side, by size, of Lighter alone, and as a waterfall."""

from collections.abc import Iterator, Sequence

from measure import Row

COLUMNS = ("containerd", "lighter", "runc")
_TIMES = ("processor", "kernel", "waited", "alive")
_SIDES = ("containerd", "lighter")


def verdict(row: Row) -> str:
    """How Lighter stands to containerd, and whether that is what is asked for."""
    ratio, median = row.ratio("lighter", "containerd"), row.median("lighter")
    unsteady = [side for side in _SIDES if row.is_unsteady(side)]
    said = [] if ratio is None else [f"{ratio:.2f} x"]
    if unsteady and all(row.median(side) is not None for side in _SIDES):
        said.append(f"no ratio: {' and '.join(unsteady)} varies by more than the median")
    if row.bound is not None and ratio is not None:
        reached = ratio <= row.bound if row.smaller_is_better else ratio >= row.bound
        said.append(f"{'<=' if row.smaller_is_better else '>='} {row.bound:g} x: {_word(reached)}")
    if row.at_most is not None and median is not None:
        said.append(f"<= {row.at_most:g} {row.unit}: {_word(median <= row.at_most)}")
    return ", ".join(said)


def _word(reached: bool) -> str:
    return "yes" if reached else "NO"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads in a terminal too; the first line is its head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in ruled
    )


def side_by_side(rows: Sequence[Row]) -> str:
    lines = [["work", "containerd", "lighter", "runtime alone", "lighter : containerd"]]
    for row in rows:
        cells = (_cell(row, column) for column in COLUMNS)
        lines.append([f"{row.work}, {row.unit}", *cells, verdict(row)])
    return aligned(lines)


def _cell(row: Row, peer: str) -> str:
    median, spread = row.median(peer), row.spread(peer)
    if median is None:
        return ""
    if row.is_unsteady(peer):
        return f"{median:.4g} ({min(row.samples[peer]):.4g} to {max(row.samples[peer]):.4g})"
    return f"{median:.4g}" + (f" ±{spread:.0%}" if spread is not None else "")


def by_size(rows: Sequence[Row]) -> str:
    """A line for each figure and side, a column for each number of containers."""
    sizes = sorted({row.size for row in rows if row.size is not None})
    lines = [["", "", *map(str, sizes), "asked of lighter"]]
    for work in dict.fromkeys(row.work for row in rows):
        these = {row.size: row for row in rows if row.work == work}
        first = next(iter(these.values()))
        for peer in COLUMNS:
            if any(row.median(peer) is not None for row in these.values()):
                cells = [_cell(these[size], peer) if size in these else "" for size in sizes]
                asked = _asked(list(these.values())) if peer == "lighter" else ""
                lines.append([f"{work}, {first.unit}", peer, *cells, asked])
    return aligned(lines)


def of_lighter(rows: Sequence[Row]) -> str:
    """A line for each figure, a column for each circumstance that it was measured in."""
    columns = list(dict.fromkeys(column for row in rows for column in row.samples))
    lines = [["", *columns, "asked"]]
    for row in rows:
        most, asked = row.at_most, ""
        if most is not None:
            found = [row.median(column) for column in row.samples]
            words = [_word(one is not None and one <= most) for one in found]
            asked = f"<= {most:g} {row.unit}: {', '.join(words)}"
        lines.append([f"{row.work}, {row.unit}", *(_cell(row, each) for each in columns), asked])
    return aligned(lines)


def _asked(rows: Sequence[Row]) -> str:
    """What must hold at every size that has the bound; these are named, if not all have it."""
    said = []
    for most in dict.fromkeys(row.at_most for row in rows if row.at_most is not None):
        bound = [row for row in rows if row.at_most == most]
        where = "" if len(bound) == len(rows) else f" at {', '.join(str(r.size) for r in bound)}"
        medians = [row.median("lighter") for row in bound]
        reached = all(median is None or median <= most for median in medians)
        said.append(f"<= {most:g} {bound[0].unit}{where}: {_word(reached)}")
    return ", ".join(said)


def waterfalls(rows: Sequence[Row], before: Sequence[Row] = (), commit: str = "") -> str:
    """A table for each work; beside each line its first figure of `before`, at `commit`."""
    return "\n\n".join(_waterfalls(rows, before, commit))


def _waterfalls(rows: Sequence[Row], before: Sequence[Row], commit: str) -> Iterator[str]:
    old = {(row.work, row.part): row for row in before}
    for work in dict.fromkeys(row.work for row in rows):
        head = [work, "processor, ms", "of it in the kernel"]
        head += ["waited for a processor", "from its start to its end"]
        compared = any(row.work == work for row in before)
        lines = [[*head, f"first figure at {commit}"] if compared else head]
        for row in rows:
            if row.work == work:
                line = [row.part, *(_cell(row, kind) for kind in _TIMES)]
                if compared:
                    then = old.get((work, row.part))
                    line.append(_cell(then, "processor") or _cell(then, "alive") if then else "")
                lines.append(line)
        yield aligned(lines)
