"""`ctl images import`, `export` and `convert`: images from files, into files, and made anew."""

import sys
from collections.abc import Callable
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import SNAPSHOTTER, Session, format_option
from lighter.ctl.handing import handed_source, handed_target
from lighter.ctl.output import print_json_line, progress, visible
from lighter.proto.errors import LighterError

_local = grammar.in_any_case("--local", "the manager does it")


def _platforms(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return grammar.option(
        "--platform", "platforms", multiple=True, metavar="OS/ARCH[/VARIANT]", help=what
    )


@grammar.command("import")
@grammar.argument("file", type=grammar.PATH, metavar="FILE")
@grammar.option(
    "--base-name",
    default="",
    help="Name for images of the archive that have none; images of other names are left out.",
)
@grammar.option("--index-name", default="", help="Name for the archive's index.")
@grammar.option("--digests", is_flag=True, help="Name images by digest too.")
@grammar.option(
    "--skip-digest-for-named", is_flag=True, help="With --digests: not those that have a name."
)
@_platforms("Import these platforms' content.")
@grammar.option("--all-platforms", is_flag=True, help="Import the content of all platforms.")
@grammar.option("--no-unpack", is_flag=True, help="Do not unpack; the first container will.")
@grammar.option("--compress-blobs", is_flag=True, help="Compress layers (docker archives only).")
@grammar.option("--snapshotter", default="", envvar=SNAPSHOTTER, help="Where to unpack.")
@_local
@format_option
def import_(session: Session, /, file: str, no_unpack: bool, **options: Any) -> None:
    """import images from an OCI or docker archive

    FILE is an archive (plain, gzip or zstd), a directory with an OCI layout, or `-` for standard
    input.

    \b
      ctl images import nginx.img
      docker save nginx:alpine | ctl images import -
      ctl images import --base-name example.com/app ./layout
    """
    shown = ImportProgress()
    with handed_source(file) as source:
        call = session.manager.begin(
            "images.import", source=source.path, unpack=not no_unpack, **options
        )
        try:
            for item in call:
                if session.json:
                    print_json_line(item)
                else:
                    shown.show(item, quiet=no_unpack)
        finally:
            source.check()
    if session.json:
        print_json_line(call.value)
    elif no_unpack:
        for name in call.value["images"]:
            progress(name)


class ImportProgress:
    """Items of images.import as ctr prints them: a line per image, finished when it is.

    What was unpacked before is done without having been unpacked. A name that has stood for another
    image is told on standard error: an archive may hold names that its owner did not think of.
    """

    def __init__(self) -> None:
        self._open = ""
        self._moved: dict[str, str] = {}

    def show(self, item: Any, *, quiet: bool = False) -> None:
        """`quiet`: of names that have moved alone."""
        ref, status = item["ref"], item["status"]
        if status == "moved":
            self._moved[ref] = item["digest"]
        elif status in ("unpacking", "done"):
            if not quiet:
                self._unpacking(ref, status, item["digest"])
            if status == "done" and ref in self._moved:
                before = self._moved.pop(ref)
                print(visible(f"moved {ref} from {before} to {item['digest']}"), file=sys.stderr)

    def _unpacking(self, ref: str, status: str, digest: str) -> None:
        if self._open != ref:
            self._open = ref
            progress(f"unpacking {ref} ({digest})...", end="")
        if status == "done":
            self._open = ""
            progress("done")


@grammar.command("export")
@grammar.argument("file", type=grammar.PATH, metavar="FILE")
@grammar.argument("names", nargs=-1, required=True, metavar="REF...")
@_platforms("Export these platforms' content.")
@grammar.option("--all-platforms", is_flag=True, help="Export the content of all platforms.")
@grammar.option("--skip-manifest-json", is_flag=True, help="Leave out docker's manifest.json.")
@grammar.option(
    "--skip-non-distributable", is_flag=True, help="Leave out layers that may not be handed on."
)
@_local
@format_option
def export(session: Session, /, file: str, **options: Any) -> None:
    """export images as one OCI archive, which docker, podman, skopeo and ctr load

    FILE appears when the archive is whole; `-` is standard output.

    \b
      ctl images export nginx.img nginx:alpine
      ctl images export --all-platforms - nginx:alpine | ssh host ctl images import -
    """
    with handed_target(file) as target:
        call = session.manager.begin("images.export", target=target.path, **options)
        try:
            for item in call:
                if session.json and file != "-":
                    print_json_line(item)
        except LighterError:
            target.check()
            raise
        target.complete()
    if session.json and file != "-":
        print_json_line(call.value)


@grammar.command("convert")
@grammar.argument("name", metavar="SOURCE")
@grammar.argument("target", metavar="TARGET")
@grammar.option("--uncompress", "compression", flag_value="none", help="Layers as plain tars.")
@grammar.option("--zstd", "compression", flag_value="zstd", help="Layers compressed with zstd.")
@grammar.option("--gzip", "compression", flag_value="gzip", help="Layers compressed with gzip.")
@grammar.option("--oci", is_flag=True, help="Docker's media types become OCI's.")
@_platforms("Convert these platforms' images.")
@grammar.option("--all-platforms", is_flag=True, help="Convert all images of an index.")
@format_option
def convert(session: Session, /, compression: str | None, **options: Any) -> None:
    """make an image with other media types or another compression of another one

    \b
      ctl images convert --oci --zstd nginx:alpine example.com/nginx:zstd
    """
    call = session.manager.begin("images.convert", compression=compression or "", **options)
    for item in call:
        if session.json:
            print_json_line(item)
    if session.json:
        print_json_line(call.value)
    else:
        print(call.value["digest"])
