"""`ctl images`: names for trees of content."""

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from lighter.ctl.cli import Commands, Session, format_option
from lighter.ctl.output import (
    labels_text,
    listing,
    print_json,
    print_json_line,
    progress,
    size_text,
)
from lighter.ctl.paging import pages
from lighter.proto.errors import InvalidArgument


@click.group("images", cls=Commands)
def images() -> None:
    """Manage images.

    \b
      ctl images import nginx.img
      ctl images ls
      ctl images rm docker.io/library/nginx:alpine
    """


images.later("pull", "transfer", "pull", "pull an image from a registry")
images.later("push", "transfer", "push", "push an image to a registry")


@images.verb("list ls")
@click.option("--quiet", "-q", is_flag=True, help="References alone.")
@format_option
@click.pass_obj
def list_(session: Session, quiet: bool) -> None:
    """list images"""
    rows = pages(session, "images.list", "images")
    if quiet:
        for row in rows:
            print(row["name"])
        return
    listing(
        session.json,
        rows,
        ("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"),
        _cells,
        min_width=1,
        padding=1,
    )


def _cells(row: Any) -> tuple[str, ...]:
    return (
        row["name"],
        row["media_type"],
        row["digest"],
        size_text(row["size_bytes"]),
        ",".join(row["platforms"]) or "-",
        labels_text(row["labels"], "-"),
    )


@images.verb("import")
@click.argument("file", type=click.Path())
@click.option("--base-name", default="", help="Name for images of the archive that have none.")
@click.option("--index-name", default="", help="Name for the archive's index.")
@click.option("--digests", is_flag=True, help="Name images by digest too.")
@click.option("--all-platforms", is_flag=True, help="Import the content of all platforms.")
@click.option("--no-unpack", is_flag=True, help="Do not unpack; the first container will.")
@click.option("--snapshotter", default="", help="Where to unpack.")
@format_option
@click.pass_obj
def import_(
    session: Session,
    file: str,
    base_name: str,
    index_name: str,
    digests: bool,
    all_platforms: bool,
    no_unpack: bool,
    snapshotter: str,
) -> None:
    """import images from an OCI or Docker archive; `-` is standard input

    \b
      ctl images import nginx.img
      docker save nginx:alpine | ctl images import -
    """
    shown = ImportProgress()
    with opened_for_manager(file) as source:
        call = session.manager.begin(
            "images.import",
            source=source,
            base_name=base_name,
            index_name=index_name,
            digests=digests,
            all_platforms=all_platforms,
            unpack=not no_unpack,
            snapshotter=snapshotter,
        )
        for item in call:
            if session.json:
                print_json_line(item)
            elif not no_unpack:
                shown.show(item)
    if session.json:
        print_json_line(call.value)
    elif no_unpack:
        for name in call.value["images"]:
            progress(name)


class ImportProgress:
    """Items of images.import as ctr prints them: a line per image, finished when it is.

    What was unpacked before is done without having been unpacked.
    """

    def __init__(self) -> None:
        self._open = ""

    def show(self, item: Any) -> None:
        ref, status = item["ref"], item["status"]
        if status not in ("unpacking", "done"):
            return
        if self._open != ref:
            self._open = ref
            progress(f"unpacking {ref} ({item['digest']})...", end="")
        if status == "done":
            self._open = ""
            progress("done")


@contextlib.contextmanager
def opened_for_manager(path: str) -> Iterator[str]:
    """A name by which the manager can read what ctl may read: `/proc/<pid>/fd/<n>`.

    A socket cannot be opened by such a name (open(2), ENXIO), so its bytes go through a pipe.
    """
    if path == "-":
        if stat.S_ISSOCK(os.fstat(0).st_mode):
            with os.fdopen(_piped(0), "rb") as pipe:
                yield f"/proc/{os.getpid()}/fd/{pipe.fileno()}"
        else:
            yield f"/proc/{os.getpid()}/fd/0"
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 (the errors of the body are not the file's)
    except OSError as err:
        raise InvalidArgument(f"open {path}: {err.strerror}") from err
    with file:
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _piped(source: int) -> int:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def copy() -> None:
        with contextlib.suppress(OSError), os.fdopen(write_end, "wb", buffering=0) as pipe:
            while data := os.read(source, 1 << 16):
                view = memoryview(data)
                while view:
                    view = view[pipe.write(view) :]

    threading.Thread(target=copy, daemon=True).start()
    return read_end


@images.verb("inspect")
@click.argument("names", nargs=-1, required=True, metavar="REF...")
@click.pass_obj
def inspect(session: Session, names: tuple[str, ...]) -> None:
    """print an image's record, manifest and config"""
    for name in names:
        print_json(session.call("images.get", name=name))


@images.verb("delete del remove rm")
@click.argument("names", nargs=-1, required=True, metavar="REF...")
@click.option("--sync", is_flag=True, help="As ctr has it; content is collected in any case.")
@click.pass_obj
def delete(session: Session, names: tuple[str, ...], sync: bool) -> None:
    """remove images by reference"""
    for name in names:
        session.call("images.delete", name=name)
        print(name)
    sys.stdout.flush()
