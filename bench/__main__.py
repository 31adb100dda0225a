"""Measure Lighter and containerd side by side: `python bench [--quick] [--part PART]`, as root.

Installs nothing, leaves nothing: each peer is a private instance under /tmp. A missed bound is
printed and no failure: noise must not decide whether a commit is good.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import report
from api import api_rows
from images import image_rows
from limit import Limit
from measure import CommandFailed, Row, run
from peers import Peer, available
from rows import FULL, QUICK, all_rows

API_EFFORT = {False: (40, 7), True: (10, 3)}  # lives per sample, samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; prints, saves nothing")
    parser.add_argument("--part", choices=report.PARTS, help="this part alone")
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("bench: needs root")
    parts = [given.part] if given.part else ["containers"] if given.quick else [*report.PARTS]
    failed = [part for part in parts if not measured(part, given.quick)]
    if failed:
        raise SystemExit(f"bench: not measured to the end: {', '.join(failed)}")


def measured(part: str, quick: bool) -> bool:
    """Measure, print and save one part. False, and nothing is saved, when something failed."""
    rows: list[Row] = []
    with ExitStack() as stack:
        try:
            peers = [stack.enter_context(peer()) for peer in available()]
            versions = {peer.name: peer.version_text() for peer in peers}
            versions["runc"] = run(["runc", "--version"]).splitlines()[0]
            about = report.facts(versions)
            for row in image_rows(available()) if part == "images" else containers(peers, quick):
                rows.append(row)
                sys.stderr.write(f"bench: {row.work}: {report.verdict(row) or 'measured'}\n")
        except CommandFailed as error:
            sys.stdout.write(report.table(rows) + "\n")
            sys.stderr.write(f"bench: {part}: {error}\n")
            return False
    sys.stdout.write(report.table(rows) + "\n")
    if not quick:
        sys.stdout.write(f"\nsaved {report.save(part, rows, about)}\n")
    return True


def containers(peers: Sequence[Peer], quick: bool) -> Iterator[Row]:
    """The rows of containers' lives, of output, crowds and restarts, and of containerd's API."""
    with Limit() as limit:
        yield from all_rows(peers, limit, QUICK if quick else FULL)
        yield from api_rows(peers, *API_EFFORT[quick])


main()
