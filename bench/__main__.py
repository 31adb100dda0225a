"""Measure Lighter and containerd side by side: `python bench [--quick]`, as root.

Installs nothing, leaves nothing: each peer is a private instance under /tmp. A missed bound is
printed and no failure: noise must not decide whether a commit is good.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain

import report
from api import api_rows
from images import image_rows
from limit import Limit
from measure import CommandFailed, Row, run
from peers import available
from rows import FULL, QUICK, all_rows

API_EFFORT = {False: (40, 7), True: (10, 3)}  # lives per sample, samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; prints, saves nothing")
    quick = parser.parse_args().quick
    if os.geteuid():
        raise SystemExit("bench: needs root")
    rows = []
    with ExitStack() as stack:
        limit = stack.enter_context(Limit())
        peers = [stack.enter_context(peer()) for peer in available()]
        versions = {peer.name: peer.version_text() for peer in peers}
        versions["runc"] = run(["runc", "--version"]).splitlines()[0]
        about = report.facts(versions)
        try:
            measured = all_rows(peers, limit, QUICK if quick else FULL)
            rest = () if quick else images()
            for row in chain(measured, api_rows(peers, *API_EFFORT[quick]), rest):
                rows.append(row)
                sys.stderr.write(f"bench: {row.work}: {report.verdict(row) or 'measured'}\n")
        except CommandFailed as error:
            sys.stdout.write(report.table(rows) + "\n")
            raise SystemExit(f"bench: {error}") from error
    sys.stdout.write(report.table(rows) + "\n")
    if not quick:
        sys.stdout.write(f"\nsaved {report.save(rows, about)}\n")


def images() -> Iterator[Row]:
    """The rows of images; what keeps them from being measured is told, and costs no other row."""
    try:
        yield from image_rows(available())
    except CommandFailed as error:
        sys.stderr.write(f"bench: images: {error}\n")


main()
