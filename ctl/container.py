"""`ctl containers`: definitions, whether they run or not."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import Session, force_option, format_option, key_values
from lighter.ctl.output import json_text, labels_text, listing, rfc3339, visible
from lighter.ctl.resolve import work_through
from lighter.proto.errors import FailedPrecondition, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


@grammar.group("containers")
def containers(_session: Session) -> None:
    """Manage containers: what would run, as it was defined.

    \b
      ctl containers create docker.io/library/nginx:alpine web
      ctl tasks start -d web
      ctl containers info web
      ctl containers rm web
    """


containers.later("create", "create", "create", "create a container, which `tasks start` starts")
containers.later("checkpoint", "checkpoint", "checkpoint", "make an image of a container")
containers.later("restore", "checkpoint", "restore", "make and start a container of a checkpoint")


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
    from lighter.ctl.paging import pages

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
    print(json_text(shown, indent=4))


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
@force_option
@grammar.argument("container_id", metavar="CONTAINER")
@grammar.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
def label(session: Session, container_id: str, labels: tuple[str, ...]) -> None:
    """set labels of a container; an empty value clears one

    \b
      ctl containers label web tier=front
    """
    changes = key_values(labels, "label", bare=True)
    changed = session.call("containers.label", id=container_id, labels=changes)["container"]
    print(visible(labels_text(changed["labels"])))


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

    session.forced = force

    def act(container_id: str) -> None:
        if keep_snapshot:
            _forget(session, container_id, force)
        else:
            remove(session, container_id, force)

    return work_through(session, container_ids, act, shown=False)


def _forget(session: Session, container_id: str, force: bool) -> None:
    """As `remove`, but the snapshot stays."""
    try:
        session.call("containers.forget", id=container_id)
    except FailedPrecondition:
        if not force and _waits_for_its_start(session, container_id):
            raise
        _delete_task(session, container_id, force)
        session.call("containers.forget", id=container_id)


def remove(
    session: Session,
    container_id: str,
    force: bool,
    *,
    volumes: bool = False,
    first: Callable[[str], object] | None = None,
) -> None:
    """Delete a container; as ctr, with its task when that has ended or was never started.

    `first` asks for the same in place of the first call. Raises FailedPrecondition for a running
    one without `force`.
    """

    def delete(id_: str) -> None:
        session.call("containers.delete", id=id_, force=force, volumes=volumes)

    try:
        (first or delete)(container_id)
    except FailedPrecondition:
        if _waits_for_its_start(session, container_id):
            raise
        _delete_task(session, container_id, force=False)
        delete(container_id)


def _waits_for_its_start(session: Session, container_id: str) -> bool:
    """Whether its policy starts it again: it would be refused without its ended task too, and that
    one's exit code be lost.
    """
    try:
        return bool(session.call("tasks.get", id=container_id)["task"].get("restart_at"))
    except NotFound:
        return False


def _delete_task(session: Session, container_id: str, force: bool) -> None:
    """Delete its task, if there is one."""
    try:
        session.call("tasks.delete", id=container_id, exec_id="", force=force)
    except NotFound:
        pass
