"""`ctl content`: blobs by digest, the ones that arrive, and what keeps them."""

import re
import subprocess
import tempfile
import time
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, force_option, format_option, key_values
from lighter.ctl.handing import handed_source
from lighter.ctl.output import (
    decimal_size_text,
    human_duration,
    labels_text,
    listing,
    print_json,
    table,
    visible,
    write_bytes,
)
from lighter.ctl.paging import pages
from lighter.ctl.resolve import work_through
from lighter.proto.errors import InvalidArgument, NotFound


@grammar.group("content")
def content(_session: Session) -> None:
    """Manage content.

    \b
      ctl content ls
      ctl content get sha256:… | jq
      ctl content why sha256:…
    """


@content.verb("list ls")
@grammar.argument("filters", nargs=-1, metavar="[FILTER]...")
@grammar.option("--quiet", "-q", is_flag=True, help="Digests alone.")
@format_option
def list_(session: Session, filters: tuple[str, ...], quiet: bool) -> None:
    """list blobs

    A filter is containerd's: digest==DIGEST, digest~=PATTERN, labels.KEY==VALUE; a comma joins what
    must all be true; of several filters one is enough.

    \b
      ctl content ls
      ctl content ls 'labels."containerd.io/uncompressed"'
    """
    rows = pages(session, "content.list", "content", filters=filters)
    if quiet:
        for row in rows:
            print(row["digest"])
        return
    now = time.time_ns()
    listing(
        session.json,
        rows,
        ("DIGEST", "SIZE", "AGE", "LABELS"),
        lambda row: (
            row["digest"],
            decimal_size_text(row["size_bytes"]),
            human_duration(row["created_at"], now),
            labels_text(row["labels"], "-"),
        ),
        min_width=1,
        padding=1,
    )


@content.verb("get")
@grammar.argument("digest")
def get(session: Session, digest: str) -> None:
    """write a blob to standard output

    \b
      ctl content get sha256:… > layer.tar.gz
    """
    for item in session.manager.begin("content.read", digest=digest, offset=0):
        write_bytes(1, item["data"])


@content.verb("ingest")
@grammar.argument("ref", metavar="REF")
@grammar.option("--expected-size", type=int, default=0, help="Refuse another number of bytes.")
@grammar.option("--expected-digest", default="", help="Refuse other content; makes it resumable.")
@grammar.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label to give it.")
@grammar.option("--lease", default="", metavar="ID", help="A lease that is to hold it.")
def ingest(
    session: Session,
    ref: str,
    expected_size: int,
    expected_digest: str,
    labels: tuple[str, ...],
    lease: str,
) -> None:
    """take standard input into the store, as the ingest REF

    What nothing keeps (--lease, or a label containerd.io/gc.root) goes with the next collection.

    \b
      ctl content ingest --expected-digest sha256:… --label containerd.io/gc.root=x mine < file
    """
    _ingest(session, "-", ref, expected_size, expected_digest, key_values(labels, "label"), lease)


def _ingest(
    session: Session,
    file: str,
    ref: str,
    expected_bytes: int = 0,
    expected_digest: str = "",
    labels: dict[str, str] | None = None,
    lease: str = "",
) -> str:
    with handed_source(file) as source:
        call = session.manager.begin(
            "content.ingest",
            ref=ref,
            source=source.path,
            expected_bytes=expected_bytes,
            expected_digest=expected_digest,
            labels=labels or {},
            lease=lease,
        )
        try:
            for _ in call:
                pass
        finally:
            source.check()
    return str(call.value["digest"])


@content.verb("active")
@grammar.argument("regexp", default="")
@format_option
def active(session: Session, regexp: str) -> None:
    """list what is arriving, all or the refs that match

    \b
      ctl content active
    """
    try:
        wanted = re.compile(regexp)
    except re.error as err:
        raise grammar.UsageError(f"regexp {regexp!r}: {err}") from err
    rows = [row for row in session.call("content.active")["ingests"] if wanted.search(row["ref"])]
    now = time.time_ns()
    listing(
        session.json,
        rows,
        ("REF", "SIZE", "AGE"),
        lambda row: (
            row["ref"],
            decimal_size_text(row["offset"]),
            human_duration(row["started_at"], now),
        ),
        min_width=1,
        padding=1,
    )


@content.verb("abort")
@force_option
@grammar.argument("refs", nargs=-1, required=True, metavar="REF...")
def abort(session: Session, refs: tuple[str, ...]) -> int:
    """remove ingests that nobody writes, with what has arrived

    \b
      ctl content abort layer-1
    """
    return work_through(session, refs, lambda ref: session.call("content.abort", ref=ref))


@content.verb("label edit-label")
@force_option
@grammar.argument("digest")
@grammar.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
def label(session: Session, digest: str, labels: tuple[str, ...]) -> None:
    """set labels of a blob, an empty value clears one; without any, print them

    \b
      ctl content label sha256:… keep=yes
    """
    changes = key_values(labels, "label", bare=True)
    if changes:
        row = session.call("content.label", digest=digest, labels=changes)
    else:
        row = session.call("content.get", digest=digest)
    print(visible(labels_text(row["content"]["labels"])))


@content.verb("edit")
@grammar.argument("digest")
@grammar.option("--editor", envvar="EDITOR", default="", help="The program.  [env: EDITOR]")
def edit(session: Session, digest: str, editor: str) -> None:
    """edit a copy of a blob, and print the new digest

    \b
      ctl content edit --editor vi sha256:…
    """
    if not editor:
        raise grammar.UsageError("an editor is needed: --editor or EDITOR")
    with tempfile.TemporaryDirectory(prefix="ctl-edit-") as folder:
        path = f"{folder}/content"
        with open(path, "wb") as file:
            for item in session.manager.begin("content.read", digest=digest, offset=0):
                file.write(item["data"])
        # As ctr and git run it: EDITOR may hold arguments.
        done = subprocess.run(["/bin/sh", "-c", f'{editor} "$1"', "sh", path], check=False)
        if done.returncode:
            raise InvalidArgument(f"edit {digest}: {editor} ended with {done.returncode}")
        print(_ingest(session, path, f"edit-{digest}"))


@content.verb("delete del remove rm")
@force_option
@grammar.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
def delete(session: Session, digests: tuple[str, ...]) -> int:
    """remove blobs from the namespace, whatever needs them; missing ones are no error

    \b
      ctl content delete sha256:…
    """

    def remove(digest: str) -> None:
        try:
            session.call("content.delete", digest=digest)
        except NotFound:
            return
        print(digest, flush=True)

    return work_through(session, digests, remove, shown=False)


@grammar.group("prune")
def prune(_session: Session) -> None:
    """Drop what makes blobs stay.

    \b
      ctl content prune references
    """


content.add(prune)
content.later("fetch", "transfer", "fetch", "fetch an image's content")
content.later("push-object", "transfer", "push_object", "push one blob or manifest")


@prune.verb("references")
@force_option
@grammar.option("--dry", is_flag=True, help="Only show what would go.")
@grammar.option(
    "--async", "is_async", is_flag=True, help="As ctr has it; it is done at once anyway."
)
@format_option
def references(session: Session, dry: bool, is_async: bool) -> None:
    """remove the labels that keep layers, and then the layers: snapshots stay

    Containers can still be made from what is unpacked; the image can no longer be pushed or
    exported.

    \b
      ctl content prune references --dry
    """
    rows = session.call("content.prune_references", dry_run=dry)["pruned"]
    listing(
        session.json,
        rows,
        ("DIGEST", "LABEL"),
        lambda row: (row["digest"], row["label"]),
        min_width=1,
        padding=1,
    )


@content.verb("why")
@grammar.argument("name", metavar="DIGEST|SNAPSHOT")
@grammar.option("--snapshotter", default="", help="Look at this one's snapshots alone.")
@format_option
def why(session: Session, name: str, snapshotter: str) -> None:
    """tell what keeps a blob or a snapshot: the chain from an image, container or lease to it

    \b
      ctl content why sha256:…
    """
    kept = session.call("content.why", name=name, snapshotter=snapshotter)["kept"]
    if session.json:
        print_json(kept)
        return
    rows: list[tuple[str, str]] = []
    for found in kept:
        rows.append((f"{found['what']} {name}", ""))
        if not found["chains"]:
            rows.append(("  nothing keeps it", "the next collection removes it"))
        for chain in found["chains"]:
            rows += [_chain_cells(step, depth) for depth, step in enumerate(chain, 1)]
    table(("KEPT", "BY"), rows, min_width=1, padding=2)


def _chain_cells(step: Any, depth: int) -> tuple[str, str]:
    return f"{'  ' * depth}{step['kind']} {step['name']}", step["how"]
