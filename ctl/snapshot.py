"""`ctl snapshots`: layered file systems, as containers and images stand on them."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import SNAPSHOTTER, Session, force_option, format_option, key_values
from lighter.ctl.output import (
    labels_text,
    listing,
    print_json,
    progress,
    size_text,
    visible,
)
from lighter.ctl.paging import pages
from lighter.ctl.resolve import work_through

# A snapshot made by hand stays until it is removed by hand.
_ROOT_LABEL = "containerd.io/gc.root"


@grammar.group("snapshots")
@grammar.option("--snapshotter", default="", envvar=SNAPSHOTTER, help="Whose.  [default: set]")
def snapshots(session: Session, snapshotter: str) -> None:
    """Manage snapshots: active ones are written to, views read, committed ones are parents.

    \b
      ctl snapshots ls
      ctl snapshots view look sha256:2d0f…
      ctl snapshots mounts /mnt look | sh
    """
    session.scope = snapshotter


def _rows(session: Session) -> list[dict[str, Any]]:
    return pages(session, "snapshots.list", "snapshots", snapshotter=session.scope)


@snapshots.verb("list ls")
@grammar.option("--quiet", "-q", is_flag=True, help="Keys alone.")
@format_option
def list_(session: Session, quiet: bool) -> None:
    """list snapshots

    \b
      ctl snapshots list
    """
    rows = _rows(session)
    if quiet:
        for row in rows:
            print(visible(row["key"]))
        return
    listing(
        session.json,
        rows,
        ("KEY", "PARENT", "KIND"),
        lambda row: (row["key"], row["parent"], row["kind"].capitalize()),
        min_width=1,
        padding=1,
    )


@snapshots.verb("info")
@grammar.argument("key")
def info(session: Session, key: str) -> None:
    """print what is recorded of a snapshot

    \b
      ctl snapshots info web
    """
    print_json(session.call("snapshots.get", snapshotter=session.scope, key=key)["snapshot"])


@snapshots.verb("usage")
@grammar.option("-b", "in_bytes", is_flag=True, help="Sizes in bytes.")
@grammar.argument("keys", nargs=-1, metavar="[KEY]...")
@format_option
def usage(session: Session, in_bytes: bool, keys: tuple[str, ...]) -> None:
    """print the disk space of snapshots, each without its parents (all of them without a KEY)

    \b
      ctl snapshots usage web
    """
    rows = [
        {"key": key, **session.call("snapshots.usage", snapshotter=session.scope, key=key)}
        for key in keys or [row["key"] for row in _rows(session)]
    ]

    def cells(row: Mapping[str, Any]) -> Sequence[object]:
        size = row["size_bytes"]
        return (row["key"], size if in_bytes else size_text(size), row["inodes"])

    listing(session.json, rows, ("KEY", "SIZE", "INODES"), cells, min_width=4, padding=1)


def _makes(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the two verbs that make a snapshot."""
    command = grammar.argument("key")(grammar.argument("parent", default="")(command))
    command = grammar.option(
        "--target", "-t", default="", help="Print the commands that mount it there."
    )(command)
    return grammar.option("--mounts", is_flag=True, help="Print the mounts as JSON.")(command)


def _make(session: Session, verb: str, key: str, parent: str, target: str, mounts: bool) -> None:
    answer = session.call(
        f"snapshots.{verb}",
        snapshotter=session.scope,
        key=key,
        parent=parent,
        labels={_ROOT_LABEL: _now()},
    )
    if target:
        _print_commands(answer["mounts"], target)
    if mounts:
        print_json(answer["mounts"])


@snapshots.verb("prepare")
@_makes
def prepare(session: Session, key: str, parent: str, target: str, mounts: bool) -> None:
    """make an active snapshot, on a committed PARENT or on nothing

    \b
      ctl snapshots prepare work sha256:…
    """
    _make(session, "prepare", key, parent, target, mounts)


@snapshots.verb("view")
@_makes
def view(session: Session, key: str, parent: str, target: str, mounts: bool) -> None:
    """make a read-only snapshot of a committed PARENT

    \b
      ctl snapshots view look sha256:…
    """
    _make(session, "view", key, parent, target, mounts)


@snapshots.verb("mounts mount m")
@grammar.argument("target")
@grammar.argument("key")
def mounts(session: Session, target: str, key: str) -> None:
    """print the commands that mount a snapshot at TARGET

    \b
      ctl snapshots mounts /mnt work
    """
    answer = session.call("snapshots.mounts", snapshotter=session.scope, key=key)
    if session.json:
        print_json(answer["mounts"])
    else:
        _print_commands(answer["mounts"], target)


def _print_commands(mounts: Sequence[Mapping[str, Any]], target: str) -> None:
    from shlex import quote

    for one in mounts:
        words = ["mount", "-t", one["type"], one["source"], target]
        if one["options"]:
            words += ["-o", ",".join(one["options"])]
        print(" ".join(map(quote, words)))


@snapshots.verb("commit")
@force_option
@grammar.argument("name", metavar="KEY")
@grammar.argument("active")
def commit(session: Session, name: str, active: str) -> None:
    """freeze the snapshot ACTIVE under the name KEY

    \b
      ctl snapshots commit done work
    """
    session.call(
        "snapshots.commit",
        snapshotter=session.scope,
        name=name,
        key=active,
        labels={_ROOT_LABEL: _now()},
    )


@snapshots.verb("unpack")
@grammar.option("--snapshotter", default="", help="As before the verb.")
@grammar.argument("image", metavar="REF|DIGEST")
@format_option
def unpack(session: Session, image: str, snapshotter: str) -> None:
    """unpack an image that is here, by its reference or its manifest's digest

    \b
      ctl snapshots unpack sha256:…
    """
    chosen = snapshotter or session.scope
    call = session.manager.begin("snapshots.unpack", snapshotter=chosen, image=image)
    if not session.json:
        progress(f"unpacking {image}...", end="")
    for _ in call:
        pass
    if session.json:
        print_json(call.value)
    else:
        progress("done")


@snapshots.verb("diff")
@grammar.argument("key")
@grammar.argument("other", default="")
@grammar.option(
    "--compression",
    type=grammar.Choice(("gzip", "zstd", "none")),
    default="gzip",
    show_default=True,
)
def diff(session: Session, key: str, other: str, compression: str) -> None:
    """write to standard output the layer that makes OTHER of KEY, or KEY of its parent

    \b
      ctl snapshots diff work > layer.tar.gz
    """
    if os.isatty(1):
        raise grammar.UsageError("standard output is a terminal; send the layer to a file or pipe")
    session.call(
        "snapshots.diff",
        snapshotter=session.scope,
        lower=key if other else "",
        parent=not other,
        key=other or key,
        target=f"/proc/{os.getpid()}/fd/1",
        compression="" if compression == "none" else compression,
    )


@snapshots.verb("remove rm delete del")
@force_option
@grammar.argument("keys", nargs=-1, required=True, metavar="KEY...")
def remove(session: Session, keys: tuple[str, ...]) -> int:
    """remove snapshots on which no other one stands

    \b
      ctl snapshots remove work
    """

    def delete(key: str) -> None:
        session.call("snapshots.delete", snapshotter=session.scope, key=key)

    return work_through(session, keys, delete)


@snapshots.verb("tree")
def tree(session: Session) -> None:
    """print snapshots below their parents

    \b
      ctl snapshots tree
    """
    children: dict[str, list[str]] = {}
    for row in _rows(session):
        children.setdefault(row["parent"], []).append(row["key"])
    if session.json:
        print_json(children)
        return
    branch = "\\_"
    todo = [(key, 0) for key in reversed(children.get("", []))]
    while todo:
        key, depth = todo.pop()
        print(f"{'  ' * depth}{branch if depth else ''} {visible(key)}")
        todo += [(below, depth + 1) for below in reversed(children.get(key, []))]


@snapshots.verb("label")
@force_option
@grammar.argument("key")
@grammar.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
def label(session: Session, key: str, labels: tuple[str, ...]) -> None:
    """set labels of a snapshot and print all; an empty value clears one

    \b
      ctl snapshots label work keep=yes
    """
    changes = key_values(labels, "label", bare=True)
    answer = session.call("snapshots.label", snapshotter=session.scope, key=key, labels=changes)
    print(visible(labels_text(answer["snapshot"]["labels"])))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
