"""`ctl images`: names for trees of content."""

import os
from collections.abc import Iterable
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import SNAPSHOTTER, Session, force_option, format_option, key_values
from lighter.ctl.handing import opened_directory
from lighter.ctl.output import labels_text, listing, print_json, size_text, visible
from lighter.ctl.paging import pages
from lighter.ctl.resolve import work_through
from lighter.ctl.tree import tree_lines
from lighter.proto.errors import InvalidArgument, NotFound

_snapshotter_option = grammar.option(
    "--snapshotter", default="", envvar=SNAPSHOTTER, help="By default the manager's."
)


@grammar.group("images")
def images(_session: Session) -> None:
    """Manage images.

    \b
      ctl images import nginx.img
      ctl images ls
      ctl images rm docker.io/library/nginx:alpine
    """


images.later("import", "archive", "import_", "import images from an OCI or docker archive")
images.later("export", "archive", "export", "export images as an OCI archive")
images.later("convert", "archive", "convert", "make an image in another form of another one")
images.later("pull", "transfer", "pull", "pull an image from a registry")
images.later("push", "transfer", "push", "push an image to a registry")


@images.verb("list ls")
@grammar.argument("filters", nargs=-1, metavar="[FILTER]...")
@grammar.option("--quiet", "-q", is_flag=True, help="References alone.")
@format_option
def list_(session: Session, filters: tuple[str, ...], quiet: bool) -> None:
    """list images

    A filter is containerd's: name==REF, name~=PATTERN, labels.KEY==VALUE, target.digest==…,
    target.mediatype==…; a comma joins what must all be true; of several filters one is enough.

    \b
      ctl images ls
      ctl images ls 'name~=nginx,labels.tier==web'
    """
    rows = pages(session, "images.list", "images", filters=filters)
    if quiet:
        for row in rows:
            print(visible(row["name"]))
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


@images.verb("check")
@grammar.argument("filters", nargs=-1, metavar="[FILTER]...")
@grammar.option(
    "--quiet", "-q", is_flag=True, help="References of the complete, unpacked ones alone."
)
@_snapshotter_option
@format_option
def check(session: Session, filters: tuple[str, ...], quiet: bool, snapshotter: str) -> None:
    """check that all content of images is here

    \b
      ctl images check
      ctl images check 'name~=nginx'
    """
    rows = pages(session, "images.check", "images", filters=filters, snapshotter=snapshotter)
    if quiet:
        for row in rows:
            if row["status"] == "complete" and row["unpacked"]:
                print(row["name"])
        return
    listing(
        session.json,
        rows,
        ("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"),
        _check_cells,
        min_width=1,
        padding=1,
    )


def _check_cells(row: Any) -> tuple[str, ...]:
    here, size = row["present"], size_text(row["present_bytes"])
    known = row["status"] != "unavailable"
    return (
        row["name"],
        row["media_type"],
        row["digest"],
        f"{row['status']} ({here}/{row['required'] if known else '?'})",
        f"{size}/{size_text(row['required_bytes']) if known else '?'}",
        "true" if row["unpacked"] else "false",
    )


@images.verb("tag")
@grammar.argument("source", metavar="SOURCE")
@grammar.argument("names", nargs=-1, required=True, metavar="TARGET...")
@grammar.option("--force", is_flag=True, help="Let names that exist go over to SOURCE.")
@grammar.in_any_case("--local", "the manager does it")
def tag(session: Session, source: str, names: tuple[str, ...], force: bool) -> int:
    """give an image further names

    \b
      ctl images tag docker.io/library/nginx:alpine nginx:alpine
    """

    def give(name: str) -> None:
        session.call("images.tag", source=source, name=name, force=force)
        print(visible(name), flush=True)

    return work_through(session, names, give, shown=False)


@images.verb("label")
@force_option
@grammar.argument("name", metavar="REF")
@grammar.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@grammar.option("--replace-all", "-r", is_flag=True, help="Remove all other labels.")
def label(session: Session, name: str, labels: tuple[str, ...], replace_all: bool) -> None:
    """set and clear labels of an image

    An empty value clears a label.

    \b
      ctl images label nginx:alpine tier=web old=
    """
    changes = key_values(labels, "label", bare=True)
    row = session.call("images.label", name=name, labels=changes, replace_all=replace_all)
    print(visible(labels_text(row["labels"])))


@images.verb("usage")
@grammar.argument("name", metavar="REF")
@_snapshotter_option
@format_option
def usage(session: Session, name: str, snapshotter: str) -> None:
    """show what an image's snapshots take

    The highest layer first.

    \b
      ctl images usage docker.io/library/nginx:alpine
    """
    rows = session.call("images.usage", name=name, snapshotter=snapshotter)["snapshots"]
    listing(
        session.json,
        rows,
        ("KEY", "SIZE", "INODES"),
        lambda row: (row["key"], size_text(row["size_bytes"]), row["inodes"]),
        min_width=1,
        padding=1,
    )


@images.verb("inspect i")
@grammar.argument("names", nargs=-1, required=True, metavar="REF...")
@grammar.option("--content", is_flag=True, help="Show the documents too.")
@format_option
def inspect(session: Session, names: tuple[str, ...], content: bool) -> int:
    """show what an image consists of

    A tree of its content; with --format json the record, manifest and config.

    \b
      ctl images inspect docker.io/library/nginx:alpine
    """

    def show(name: str) -> None:
        if session.json:
            print_json(session.call("images.get", name=name))
        else:
            for line in tree_lines(session.call("images.tree", name=name, content=content)):
                print(visible(line))

    return work_through(session, names, show, shown=False)


@images.verb("delete del remove rm")
@force_option
@grammar.argument("names", nargs=-1, required=True, metavar="REF...")
@grammar.option("--sync", is_flag=True, help="As ctr has it: content is always gone then.")
def delete(session: Session, names: tuple[str, ...], sync: bool) -> int:
    """remove images by reference

    One that is missing is told, and does not keep the others.

    \b
      ctl images delete docker.io/library/nginx:alpine
    """
    return _remove(session, names)


def _remove(session: Session, names: Iterable[str]) -> int:
    code = 0
    for name in names:
        try:
            session.call("images.delete", name=name)
        except (NotFound, InvalidArgument) as err:
            session.complain(err.message)
            code = 1
        else:
            print(visible(name), flush=True)
    return code


@images.verb("prune")
@force_option
@grammar.option("--all", "-a", "everything", is_flag=True, help="Without it none is removed.")
def prune(session: Session, everything: bool) -> int:
    """remove images that no container was made from

    \b
      ctl images prune --all
    """
    if not everything:
        session.warn(["no image is removed without --all: each of them has a name"])
        return 0
    names = [row["name"] for row in pages(session, "images.list", "images")]
    used = {row["image"] for row in pages(session, "containers.list", "containers")}
    return _remove(session, (name for name in names if name not in used))


@images.verb("mount")
@grammar.argument("name", metavar="REF")
@grammar.argument("target", type=grammar.PATH, metavar="DIRECTORY")
@grammar.option("--rw", is_flag=True, help="Let it be written to; unmount --rm removes what was.")
@grammar.option(
    "--platform", default="", metavar="OS/ARCH[/VARIANT]", help="By default this host's."
)
@_snapshotter_option
def mount(
    session: Session, name: str, target: str, rw: bool, platform: str, snapshotter: str
) -> None:
    """mount an image's files on a directory

    Programs with setuid and devices do not work there.

    \b
      ctl images mount nginx:alpine /mnt
      ctl images unmount --rm /mnt
    """
    with opened_directory(target) as place:
        answer = session.call(
            "images.mount",
            name=name,
            target=os.path.realpath(target),
            place=place,
            rw=rw,
            platform=platform,
            snapshotter=snapshotter,
        )
    print(answer["chain_id"])
    print(target)


@images.verb("unmount umount")
@grammar.argument("target", type=grammar.PATH, metavar="DIRECTORY")
@grammar.option("--rm", is_flag=True, help="Remove the snapshot, and what was written to it, too.")
@_snapshotter_option
def unmount(session: Session, target: str, rm: bool, snapshotter: str) -> None:
    """take an image off a directory

    \b
      ctl images unmount /mnt/nginx
    """
    session.call(
        "images.unmount", target=os.path.realpath(target), remove=rm, snapshotter=snapshotter
    )
    print(target)
