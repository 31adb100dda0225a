"""`ctl containers`: definitions, whether they run or not."""

import contextlib
from collections.abc import Mapping
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option, key_values
from lighter.ctl.definition import definition, definition_options
from lighter.ctl.output import labels_text, listing, rfc3339
from lighter.ctl.paging import pages
from lighter.ctl.resolve import work_through
from lighter.proto.errors import FailedPrecondition, NotFound


@grammar.group("containers")
def containers(_session: Session) -> None:
    """Manage containers: what would run, as it was defined.

    \b
      ctl containers create docker.io/library/nginx:alpine web
      ctl tasks start -d web
      ctl containers info web
      ctl containers rm web
    """


containers.later("checkpoint", "checkpoint", "checkpoint", "make an image of a container")
containers.later("restore", "checkpoint", "restore", "make and start a container of a checkpoint")


@containers.verb("create", interspersed=False, late_flags=2)
@definition_options
@grammar.argument("words", nargs=-1, type=grammar.RAW, metavar="IMAGE CONTAINER [COMMAND] [ARG]...")
def create(session: Session, /, words: tuple[str, ...], **flags: Any) -> None:
    """create a container, which `tasks start` starts

    \b
      ctl containers create docker.io/library/busybox:latest box
      ctl containers create docker.io/library/busybox:latest box sh -c 'sleep 60'
      ctl containers create IMAGE box --mount type=bind,src=/tmp,dst=/hostdir,options=rbind:rw
    """
    if flags["config"] and len(words) == 1:  # the spec knows the root: the one word is the id
        words = ("", *words)
    if len(words) < 2:
        raise grammar.UsageError("image and container id must be given")
    body = definition(words[1], words[0], words[2:], flags, given=session.given)
    session.warn(session.call("containers.create", **body)["warnings"])


@containers.verb("list ls")
@grammar.argument("filters", nargs=-1, metavar="[FILTER]...")
@grammar.option("--quiet", "-q", is_flag=True, help="Ids alone.")
@format_option
def list_(session: Session, filters: tuple[str, ...], quiet: bool) -> None:
    """list containers

    A filter is containerd's: id==ID, image~=PATTERN, runtime.name==…, labels.KEY==VALUE; a comma
    joins what must all be true; of several filters one is enough.

    \b
      ctl containers list -q
      ctl containers ls 'image~=nginx,labels.tier==web'
    """
    rows = pages(session, "containers.list", "containers", filters=filters)
    if quiet:
        for row in rows:
            print(row["id"])
        return
    from lighter.ctl.lists import warn_of_damage

    warn_of_damage(session, rows)
    listing(
        session.json,
        rows,
        ("CONTAINER", "IMAGE", "RUNTIME"),
        lambda row: (row["id"], row["image"] or "-", row["runtime"]),
    )


@containers.verb("info")
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.option("--spec", is_flag=True, help="The OCI spec alone.")
def info(session: Session, container_id: str, spec: bool) -> None:
    """print a container's definition and OCI spec, as ctr does

    \b
      ctl containers info --spec web
    """
    import json

    container = session.call("containers.get", id=container_id)["container"]
    shown = json.loads(container["spec"]) if spec else _as_ctr(container, json.loads)
    print(json.dumps(shown, indent=4, ensure_ascii=False))


def _as_ctr(container: Mapping[str, Any], loads: Any) -> dict[str, Any]:
    """The field names of containerd's Go struct, which ctr prints."""
    return {
        "ID": container["id"],
        "Labels": container["labels"],
        "Image": container["image"],
        "Runtime": {"Name": container["runtime"], "Options": None},
        "SnapshotKey": container["snapshot_key"],
        "Snapshotter": container["snapshotter"],
        "CreatedAt": rfc3339(container["created_at"]),
        "UpdatedAt": rfc3339(container["updated_at"]),
        "Extensions": None,
        "Spec": loads(container["spec"]),
        # Of a task with networks; ctr has no word for them.
        **({"Networks": container["networks"]} if container.get("networks") else {}),
        **({"Ports": container["ports"]} if container.get("ports") else {}),
    }


@containers.verb("label")
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
def label(session: Session, container_id: str, labels: tuple[str, ...]) -> None:
    """set labels of a container; an empty value clears one

    \b
      ctl containers label web tier=front
    """
    changes = key_values(labels, "label", bare=True)
    changed = session.call("containers.label", id=container_id, labels=changes)["container"]
    print(labels_text(changed["labels"]))


@containers.verb("delete del remove rm")
@grammar.argument("container_ids", nargs=-1, required=True, metavar="CONTAINER...")
@grammar.option("--force", "-f", is_flag=True, help="End and delete its task first.")
@grammar.option(
    "--keep-snapshot", is_flag=True, help="What it has written stays until `snapshots rm`."
)
def delete(
    session: Session, container_ids: tuple[str, ...], force: bool, keep_snapshot: bool
) -> int:
    """delete containers that do not run

    \b
      ctl containers delete web
      ctl containers delete --keep-snapshot web && ctl snapshots info web
    """

    def act(container_id: str) -> None:
        if keep_snapshot:
            _forget(session, container_id, force)
        else:
            remove(session, container_id, force)

    return work_through(session, container_ids, act, shown=False)


def _forget(session: Session, container_id: str, force: bool) -> None:
    """As `remove`, but for the snapshot."""
    try:
        session.call("containers.forget", id=container_id)
    except FailedPrecondition:
        with contextlib.suppress(NotFound):
            session.call("tasks.delete", id=container_id, exec_id="", force=force)
        session.call("containers.forget", id=container_id)


def remove(session: Session, container_id: str, force: bool, *, volumes: bool = False) -> None:
    """Delete a container; as ctr, with its task when that has ended or was never started.

    Raises FailedPrecondition for a running one without `force`.
    """
    try:
        session.call("containers.delete", id=container_id, force=force, volumes=volumes)
    except FailedPrecondition:
        with contextlib.suppress(NotFound):
            session.call("tasks.delete", id=container_id, exec_id="", force=False)
        session.call("containers.delete", id=container_id, force=force, volumes=volumes)
