"""The history of some rows as a drawing: one panel a row, one point a measured commit.

Plain SVG, written by hand: lines and text are all that it needs.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from measure import LISTED, Row

_KILLED = "`kill -9` of the manager until all 100"
# What users feel, of those that many commits have measured.
DRAWN = (
    "`run --rm IMAGE true`, whole command",
    "`exec … true`, whole command",
    "`tasks ls` with 100 tasks, whole command",
    "life: all of it, one at a time",
    "100 detached containers started, four at a time",
    "API: lives per second, 4 at a time",
    "2000 MiB from a container's stdout through an attached client",
    f"{_KILLED} {LISTED}",
    "monitor memory per container at 100: PSS",
    "manager memory with 100 containers: RSS",
    "pull of 450 MB, gzip-8",
    "import of 450 MB, gzip-1",
)
# What was measured under another name.
RENAMED = {f"{_KILLED} are listed running": f"{_KILLED} {LISTED}"}
_COLOURS = {"lighter": "#1f6feb", "containerd": "#8c8c8c", "runc": "#d29922"}
_FONT = 'font-family="sans-serif" font-size="10"'
_PANELS_A_LINE = 3
_WIDTH, _HEIGHT = 320, 190  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 34, 30  # what a panel's text takes of it
_HEAD = 30
_ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)

Result = tuple[Sequence[Row], dict[str, Any]]


def drawing(results: Sequence[Result]) -> str:
    """SVG of all rows in DRAWN that at least two of `results` have, oldest first."""
    ordered = sorted(results, key=lambda result: str(result[1]["measured_at"]))
    panels = []
    for work in DRAWN:
        found = [
            (about["commit"], row) for rows, about in ordered for row in rows if row.work == work
        ]
        found = [(commit, row) for commit, row in found if row.unit == found[-1][1].unit]
        if len(found) > 1:
            panels.append((work, found))
    lines = -(-len(panels) // _PANELS_A_LINE)
    width, height = _PANELS_A_LINE * _WIDTH, _HEAD + lines * _HEIGHT
    size = f'width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} {_FONT}>',
        f'<rect {size} fill="#ffffff"/>',
        *_legend(),
    ]
    for index, (work, found) in enumerate(panels):
        line, column = divmod(index, _PANELS_A_LINE)
        parts += [
            f'<g transform="translate({column * _WIDTH},{_HEAD + line * _HEIGHT})">',
            *_panel(work, found),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>\n"])


def _legend() -> list[str]:
    parts = []
    for index, (name, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + index * 100
        parts.append(f'<rect x="{x}" y="12" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 20}" y="18">{name}</text>')
    return parts


def _panel(work: str, found: Sequence[tuple[str, Row]]) -> list[str]:
    rows = [row for _, row in found]
    highest = max(m for row in rows for name in _COLOURS if (m := row.median(name)) is not None)
    top = rounded_up(highest)
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    step = inner_width / (len(found) - 1)

    def at(index: int, value: float) -> tuple[float, float]:
        return _LEFT + index * step, _TOP + inner_height * (1 - value / top)

    title = work.replace("`", "")
    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(_short(title))}</text>']
    for share in (0, 0.5, 1):
        _, y = at(0, top * share)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}h{inner_width}" stroke="#dddddd" fill="none"/>'
            f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{top * share:g}</text>'
        )
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 6}" fill="#666666">{escape(rows[0].unit)}</text>')
    for name, colour in _COLOURS.items():
        points = [
            at(i, median) for i, row in enumerate(rows) if (median := row.median(name)) is not None
        ]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if points:
            parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
    for index, anchor in ((0, "start"), (len(found) - 1, "end")):
        x, _ = at(index, 0)
        commit = escape(found[index][0])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 14}" text-anchor="{anchor}">{commit}</text>')
    return parts


def _short(title: str) -> str:
    return title if len(title) <= 46 else title[:45].rstrip() + "…"


def rounded_up(value: float) -> float:
    """The next round number; 1 for what is not positive."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power > value:
        power /= 10
    while power * 10 < value:
        power *= 10
    return next(step * power for step in _ROUND if step * power >= value)
