"""A transfer on a terminal: a bar for each piece, with its rate and the time that is left."""

from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lighter.ctl.output import visible
from lighter.ctl.progress import Summary, times_text

_SHOWN_DIGITS = 12


class Bars:
    """To be used as a context: the bars' last state stays on the screen."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.fields[name]}", markup=False),
            TextColumn("{task.fields[status]:<11}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            refresh_per_second=10,
        )
        self._bars: dict[tuple[str, str], TaskID] = {}
        self._summary = Summary()

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, item: dict[str, Any]) -> None:
        self._summary.note(item)
        if item["kind"]:
            name = f"{item['kind']}-{item['digest'].removeprefix('sha256:')[:_SHOWN_DIGITS]}"
            self._update((item["kind"], item["digest"]), name, item)
        elif item["status"] == "resolved":
            self._say(f"{item['ref']}: resolved {item['digest']}")
        elif item["status"] == "unpacking":
            self._update(("", "unpack"), "snapshots", item)

    def _update(self, key: tuple[str, str], name: str, item: dict[str, Any]) -> None:
        status = item["status"]
        if status == "unpacking" and item["done_bytes"] >= item["total_bytes"]:
            status = "unpacked"
        if key not in self._bars:
            self._bars[key] = self._progress.add_task("", total=None, name=name, status=status)
        self._progress.update(
            self._bars[key],
            completed=item["done_bytes"],
            total=item["total_bytes"] or None,
            status=status,
        )

    def finish(self, result: dict[str, Any]) -> None:
        self._progress.stop()
        self._say(self._summary.text())
        if times := times_text(result):
            self._say(times)

    def _say(self, text: str) -> None:
        """A line above the bars, or below them once they stand; long ones are the terminal's."""
        self._console.print(visible(text), soft_wrap=True)
