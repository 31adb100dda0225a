"""Measure Lighter and containerd side by side: `python bench [--quick] [--part PART]`, as root.

The parts are `containers`, `growth`, `memory`, `waterfall`, `images` and `crun`. Ended early, it
removes what it has made.

Installs nothing, leaves nothing: each peer is a private instance under /tmp. A missed bound is
printed and no failure: noise must not decide whether a commit is good.
"""

import argparse
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from types import FrameType
from typing import Any

import growth
import memory
import report
import rows
import waterfall
from api import api_rows
from images import image_rows
from limit import Limit
from measure import STOPS, CommandFailed, Row, run
from peer import RUNC, Peer
from peers import Lighter, available
from tables import verdict

from lighter.shim import linux  # type: ignore[import-untyped]

API_EFFORT = {False: (40, 7), True: (10, 3)}  # lives per sample, samples


QUICK_PARTS = ["containers", "growth", "waterfall"]
CRUN = "crun"
ALONE = ("memory", "waterfall")  # no peer of these is measured
_UNIFIED = "/sys/fs/cgroup/unified"
_SAID_CHARS = 150  # of each end of what a failure says


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; prints, saves nothing")
    parser.add_argument("--part", choices=report.PARTS, help="this part alone")
    parser.add_argument("--page", action="store_true", help="write the page of what is saved alone")
    given = parser.parse_args()
    if given.page:
        report.write_page()
        return
    if os.geteuid():
        raise SystemExit("bench: needs root")
    for signum in STOPS:
        signal.signal(signum, _stop)
    parts = [given.part] if given.part else QUICK_PARTS if given.quick else all_parts()
    failed = [part for part in parts if not measured(part, given.quick)]
    if failed:
        raise SystemExit(f"bench: not measured to the end: {', '.join(failed)}")


def all_parts() -> list[str]:
    """crun's, if it is there, comes last: for it the bench leaves the host's mount namespace."""
    others = [part for part in report.PARTS if part != CRUN]
    return [*others, CRUN] if shutil.which(CRUN) else others


def _leave_unified() -> None:
    """crun refuses a tree of cgroup v1 that has the v2 side mounted beside."""
    if os.path.ismount(_UNIFIED):
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.umount(_UNIFIED)


def _stop(signum: int, _frame: FrameType | None) -> None:
    """End, but remove first what was started, which a second signal does not interrupt."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def measured(part: str, quick: bool) -> bool:
    """Measure, print and save one part. False when something failed, whatever it was.

    What was measured until then is kept: another part, or this one's next time, is not lost by it.
    """
    found: list[Row] = []
    about: dict[str, Any] = {}
    is_whole = True
    try:
        _measure(part, quick, found, about)
    except Exception as error:
        is_whole = False
        about["ended_early"] = _said(error)
        _show_failure(part)
    try:
        sys.stdout.write(report.shown(part, found) + "\n\n")
        if found and not quick:
            sys.stdout.write(f"saved {report.save(part, found, about)}\n")
    except Exception:
        is_whole = False
        _show_failure(part)
    sys.stdout.flush()
    return is_whole


def _measure(part: str, quick: bool, found: list[Row], about: dict[str, Any]) -> None:
    """Fill `found` row by row, and what it was measured on before the first."""
    with ExitStack() as stack:
        if part == CRUN:
            _leave_unified()
        runtime = CRUN if part == CRUN else RUNC
        kinds = [Lighter] if part in ALONE else available()
        peers = [stack.enter_context(peer(runtime=runtime)) for peer in kinds]
        versions = {peer.name: peer.version_text() for peer in peers}
        versions[runtime] = run([runtime, "--version"]).splitlines()[0]
        about.update(report.facts(versions))
        # Closed here, and not when it is collected: it has directories and containers too.
        for row in stack.enter_context(closing(part_rows(part, peers, quick))):
            found.append(row)
            sys.stderr.write(f"bench: {_told(row)}: {verdict(row) or 'measured'}\n")


def _said(error: Exception) -> str:
    """One line, for the page."""
    line = " ".join(str(error).split()) or "no more is known"
    if len(line) > 2 * _SAID_CHARS:
        line = f"{line[:_SAID_CHARS]} … {line[-_SAID_CHARS:]}"
    return line if isinstance(error, CommandFailed) else f"{type(error).__name__}: {line}"


def _show_failure(part: str) -> None:
    sys.stderr.write(f"bench: {part}:\n{traceback.format_exc()}")


def _told(row: Row) -> str:
    return row.work + (f", {row.part}" if row.part else "") + (f", {row.size}" if row.size else "")


def part_rows(part: str, peers: Sequence[Peer], quick: bool) -> Generator[Row, None, None]:
    match part:
        case "images":
            yield from image_rows(available())
        case "growth":
            yield from growth.growth_rows(peers, growth.QUICK if quick else growth.FULL)
        case "memory":
            lighter = next(peer for peer in peers if isinstance(peer, Lighter))
            yield from memory.memory_rows(lighter)
        case "waterfall":
            lighter = next(peer for peer in peers if isinstance(peer, Lighter))
            effort = waterfall.QUICK if quick else waterfall.FULL
            yield from waterfall.waterfall_rows(lighter, effort)
        case "crun":
            with Limit(CRUN) as limit:
                yield from rows.crun_rows(peers, limit, rows.QUICK if quick else rows.FULL)
        case _:
            yield from containers(peers, quick)


def containers(peers: Sequence[Peer], quick: bool) -> Iterator[Row]:
    """The rows of containers' lives, of output, crowds and restarts, and of containerd's API."""
    with Limit() as limit:
        yield from rows.all_rows(peers, limit, rows.QUICK if quick else rows.FULL)
        yield from api_rows(peers, limit, *API_EFFORT[quick])


if __name__ == "__main__":
    main()
