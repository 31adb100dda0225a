"""`ctl cp`, `diff`, `export`, `commit`, `rmi`: docker's words for the files of containers."""

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session
from lighter.ctl.handing import Handed, emptied_pipe, filled_pipe, handed_source, handed_target
from lighter.ctl.output import visible
from lighter.ctl.resolve import remove_each, resolved
from lighter.proto.errors import FailedPrecondition, InvalidArgument, LighterError, NotFound

_MAX_LINKS = 10


@grammar.command("cp")
@grammar.option("--archive", "-a", is_flag=True, help="Keep uid, gid and all bits of the mode.")
@grammar.option("--follow-link", "-L", is_flag=True, help="Copy what a link at SRC leads to.")
@grammar.option("--quiet", "-q", is_flag=True, help="Docker's word; nothing is printed anyway.")
@grammar.argument("source", metavar="CONTAINER:SRC|SRC|-")
@grammar.argument("target", metavar="DST|-|CONTAINER:DST")
def cp(
    session: Session, source: str, target: str, archive: bool, follow_link: bool, quiet: bool
) -> None:
    """Copy files from or to a container, which may run, be paused or have ended.

    A directory that ends in /. means what is in it. `-` is a tar on standard input or output. What
    comes in belongs to root, what comes out to who copies, unless -a is given.

    \b
      ctl cp web:/etc/hosts .
      ctl cp site/. web:/srv
      ctl cp web:/var/log - | tar t
    """
    del quiet
    from_ref, from_path = _split(source)
    to_ref, to_path = _split(target)
    if bool(from_ref) == bool(to_ref):
        raise grammar.UsageError("exactly one of both must be CONTAINER:PATH")
    if from_ref:
        path = os.fsencode(from_path)
        resolved(
            session,
            from_ref,
            lambda id_: _copy_out(session, id_, path, to_path, archive, follow_link),
        )
    else:
        path = os.fsencode(to_path)
        resolved(
            session,
            to_ref,
            lambda id_: _copy_in(session, id_, from_path, path, archive, follow_link),
        )


def _split(word: str) -> tuple[str, str]:
    """(container, path in it), ("", path of the host)."""
    ref, colon, path = word.partition(":")
    if not colon or word.startswith(("/", ".")) or "/" in ref:
        return "", word
    if not path:
        raise grammar.UsageError(f"{word!r}: the path is missing")
    return ref, path


def _base(path: bytes) -> bytes:
    """The last name of a path; "." for a directory's content."""
    if path.endswith((b"/.", b"/..")) or path in (b".", b".."):
        return b"."
    return path.rstrip(b"/").rpartition(b"/")[2] or b"."


# out of a container


def _copy_out(
    session: Session, id_: str, path: bytes, target: str, archive: bool, follow: bool
) -> None:
    found = session.call("files.look", id=id_, path=path)
    mode = found["target_mode"] if follow or path.endswith(b"/") else found["mode"]
    if not mode:
        raise NotFound(f"copy {_shown(path)} of {id_}: the link leads nowhere")
    _check_kind(mode, f"{_shown(path)} of {id_}", as_tar=target == "-")
    with contextlib.ExitStack() as undo:
        if target == "-":
            handed = undo.enter_context(handed_target("-"))
            name = _base(path)
        else:
            folder, name = _place_here(path, target, is_directory=stat.S_ISDIR(mode))
            handed = _unpacking(undo, session, folder, archive)
        _pass(
            handed,
            lambda: session.call(
                "files.pack", id=id_, path=path, name=name, follow=follow, target=handed.path
            ),
        )


def _check_kind(mode: int, what: str, *, as_tar: bool) -> None:
    """Raises FailedPrecondition for what no copy is made of: of the whole source none would be."""
    if stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"copy {what}: it is a socket")
    if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not as_tar:
        raise FailedPrecondition(f"copy {what}: it is a device")


def _place_here(path: bytes, target: str, *, is_directory: bool) -> tuple[str, bytes]:
    """(directory to unpack in, name of what is copied)."""
    place = os.path.realpath(target)
    if os.path.isdir(place):
        return place, _base(path)
    if is_directory and os.path.exists(place):
        raise FailedPrecondition(f"copy to {target}: it is no directory")
    if target.endswith("/") and not is_directory:
        raise FailedPrecondition(f"copy to {target}: there is no such directory")
    if os.path.exists(place) and not os.path.isfile(place):
        # What is copied would take its place, and /dev/null would be a file from then on.
        raise FailedPrecondition(f"copy to {target}: it is a device, a FIFO or a socket")
    folder, name = os.path.split(place)
    if not os.path.isdir(folder):
        raise NotFound(f"copy to {target}: there is no directory {folder}")
    return folder, os.fsencode(name)


def unpack_from(
    session: Session, id_: str, path: bytes, folder: str, *, replaces: bool = True
) -> None:
    """Copy what is in a directory of a container into one of the host.

    Without `replaces`, raises FailedPrecondition for a file that is there.
    """
    with contextlib.ExitStack() as undo:
        handed = _unpacking(undo, session, folder, False, replaces=replaces)
        _pass(
            handed,
            lambda: session.call(
                "files.pack", id=id_, path=path, name=b".", follow=False, target=handed.path
            ),
        )


def _unpacking(
    undo: contextlib.ExitStack,
    session: Session,
    folder: str,
    archive: bool,
    *,
    replaces: bool = True,
) -> Handed:
    from lighter.ctl.untar import Untar

    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise InvalidArgument(f"open {folder}: {err.strerror}") from err
    undo.callback(os.close, root)
    untar = Untar(root, owner=archive, complain=session.complain, replaces=replaces)
    return emptied_pipe(undo, untar.run)


def _pass(handed: Handed, call: Callable[[], object]) -> None:
    """Have the manager do its half; what our half met is the cause of what it says of the pipe."""
    try:
        call()
    except LighterError:
        handed.check()
        raise
    handed.complete()


# into a container


def _copy_in(
    session: Session, id_: str, source: str, path: bytes, archive: bool, follow: bool
) -> None:
    owner: dict[str, Any] = {"uid": None, "gid": None} if archive else {"uid": 0, "gid": 0}
    if source == "-":
        if not stat.S_ISDIR(_mode_inside(session, id_, path)):
            raise FailedPrecondition(f"copy to {_shown(path)} of {id_}: it is no directory")
        owner = {"uid": None, "gid": None}
        with handed_source("-") as handed:
            _extract(session, id_, path, handed, owner)
        return
    status = os.stat(source) if follow or source.endswith("/") else _lstat(source)
    _check_kind(status.st_mode, source, as_tar=False)
    is_directory = stat.S_ISDIR(status.st_mode)
    folder, name = _place_inside(session, id_, source, path, is_directory=is_directory)
    with contextlib.ExitStack() as undo:
        handed = filled_pipe(
            undo, lambda fd: _write_tar(fd, source, os.fsdecode(name), follow=follow)
        )
        _extract(session, id_, folder, handed, owner)


def _extract(
    session: Session, id_: str, folder: bytes, handed: Handed, owner: dict[str, Any]
) -> None:
    try:
        session.call("files.extract", id=id_, path=folder, source=handed.path, **owner)
    finally:
        handed.check()


def _lstat(path: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as err:
        raise NotFound(f"copy {path}: {err.strerror}") from err


def _mode_inside(session: Session, id_: str, path: bytes) -> int:
    """The mode of what the path leads to, 0 where nothing is."""
    try:
        return int(session.call("files.look", id=id_, path=path)["target_mode"])
    except NotFound as error:
        if not _is_of_path(error):
            raise
        return 0


def _is_of_path(error: NotFound) -> bool:
    """Whether only the path is missing. A manager of the release before says it in words alone."""
    return error.details.get("missing") == "path" or error.message.startswith("find ")


def _place_inside(
    session: Session, id_: str, source: str, path: bytes, *, is_directory: bool
) -> tuple[bytes, bytes]:
    """(directory of the container to unpack in, name of what is copied)."""
    place = path
    for _ in range(_MAX_LINKS):
        try:
            found = session.call("files.look", id=id_, path=place)
        except NotFound as error:
            if not _is_of_path(error):
                raise
            found = {"mode": 0, "target_mode": 0, "link": b""}
        if stat.S_ISDIR(found["target_mode"]):
            return place, _base(os.fsencode(source))
        if not stat.S_ISLNK(found["mode"]):
            break
        # A link to a file, or to nothing yet: it is what it leads to that is written.
        place = os.path.join(os.path.dirname(place), found["link"])
    if is_directory and found["mode"]:
        raise FailedPrecondition(f"copy to {_shown(path)} of {id_}: it is no directory")
    if path.endswith(b"/") and not is_directory:
        raise FailedPrecondition(f"copy to {_shown(path)} of {id_}: there is no such directory")
    folder, _, name = place.rstrip(b"/").rpartition(b"/")
    if not stat.S_ISDIR(_mode_inside(session, id_, folder or b"/")):
        raise NotFound(f"copy to {_shown(path)} of {id_}: there is no directory {_shown(folder)}")
    return folder or b"/", name


def _write_tar(fd: int, source: str, name: str, *, follow: bool) -> None:
    import tarfile

    top = os.path.realpath(source) if follow else source
    with (
        os.fdopen(os.dup(fd), "wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        if name == ".":
            for child in sorted(os.listdir(top)):
                tar.add(os.path.join(top, child), arcname=child)
        else:
            tar.add(top.rstrip("/") or "/", arcname=name)


def _shown(path: bytes) -> str:
    return visible(os.fsdecode(path))


# the others


@grammar.command("diff")
@grammar.argument("ref", metavar="CONTAINER")
def diff(session: Session, ref: str) -> None:
    """List files that a container has added (A), changed (C) or deleted (D).

    \b
      ctl diff web
    """

    def run(id_: str) -> None:
        with contextlib.ExitStack() as undo:
            handed = emptied_pipe(undo, _print_changes)
            _pass(handed, lambda: session.call("files.changes", id=id_, target=handed.path))

    resolved(session, ref, run)


def _print_changes(fd: int) -> None:
    rest = b""
    while data := os.read(fd, 1 << 16):
        *records, rest = (rest + data).split(b"\0")
        for record in records:
            print(f"{record[:1].decode()} {_shown(record[1:])}")


@grammar.command("export")
@grammar.option("--output", "-o", default="-", help="Write to this file.  [default: stdout]")
@grammar.argument("ref", metavar="CONTAINER")
def export(session: Session, ref: str, output: str) -> None:
    """Write a container's root file system as a tar, without what is mounted in it.

    Of images the word is `ctl images export`.

    \b
      ctl export web > web.tar
    """

    def run(id_: str) -> None:
        with handed_target(output) as handed:
            _pass(handed, lambda: session.call("files.export", id=id_, target=handed.path))

    resolved(session, ref, run)


@grammar.command("commit")
@grammar.option("--author", "-a", default="", help='Such as "Ada <ada@example.com>".')
@grammar.option("--message", "-m", default="", help="What was done.")
@grammar.option("--change", "-c", "changes", multiple=True, help="A Dockerfile instruction.")
@grammar.option(
    "--pause/--no-pause", "-p", default=True, help="Freeze it meanwhile; on by default."
)
@grammar.argument("ref", metavar="CONTAINER")
@grammar.argument("name", metavar="NAME[:TAG]")
def commit(
    session: Session,
    ref: str,
    name: str,
    author: str,
    message: str,
    changes: tuple[str, ...],
    pause: bool,
) -> None:
    """Make an image of a container's changes, and print its digest.

    \b
      ctl commit -c 'CMD ["httpd"]' -c 'ENV A=1' web site:2
    """

    def run(id_: str) -> None:
        made = session.call(
            "files.commit",
            id=id_,
            name=name,
            author=author,
            message=message,
            changes=list(changes),
            pause=pause,
        )
        print(made["digest"])

    resolved(session, ref, run)


@grammar.command("rmi")
@grammar.option("--force", "-f", is_flag=True, help="One that is not there is no failure.")
@grammar.argument("names", nargs=-1, required=True, metavar="IMAGE...")
def rmi(session: Session, names: tuple[str, ...], force: bool) -> int:
    """Remove images. What containers stand on stays until they go.

    \b
      ctl rmi nginx:alpine
    """
    session.forced = force
    return remove_each(session, "images.delete", names, force=force)
