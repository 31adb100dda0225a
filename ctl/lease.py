"""`ctl leases`: what is to stay though nothing needs it."""

import time

from lighter.ctl import grammar
from lighter.ctl.cli import DURATION, Session, force_option, format_option, key_values
from lighter.ctl.output import labels_text, listing, local_time, rfc3339
from lighter.ctl.resolve import work_through

EXPIRE_LABEL = "containerd.io/gc.expire"


@grammar.group("leases")
def leases(_session: Session) -> None:
    """Manage leases.

    \b
      ctl leases create --id mine --expires 1h
      ctl content ingest --lease mine REF < file
      ctl leases rm mine
    """


@leases.verb("list ls")
@grammar.argument("filters", nargs=-1, metavar="[FILTER]...")
@grammar.option("--quiet", "-q", is_flag=True, help="Ids alone.")
@format_option
def list_(session: Session, filters: tuple[str, ...], quiet: bool) -> None:
    """list leases

    A filter is containerd's: id==ID, id~=PATTERN, labels.KEY==VALUE; a comma joins what must all be
    true; of several filters one is enough.

    \b
      ctl leases list
      ctl leases ls 'id~=^build'
    """
    rows = session.call("leases.list", filters=filters)["leases"]
    if quiet:
        for row in rows:
            print(row["id"])
        return
    listing(
        session.json,
        rows,
        ("ID", "CREATED AT", "LABELS"),
        lambda row: (row["id"], local_time(row["created_at"]), labels_text(row["labels"], "-")),
        min_width=1,
        padding=1,
    )


@leases.verb("create")
@grammar.option("--id", "lease_id", default="", help="Its id; one is made up.")
@grammar.option(
    "--expires",
    "-x",
    type=DURATION,
    default="24h",
    show_default=True,
    help="When it ends by itself; 0: never.",
)
@grammar.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
def create(session: Session, lease_id: str, expires: float, labels: tuple[str, ...]) -> None:
    """create a lease, and print its id

    \b
      ctl leases create --id build --expires 1h
    """
    given = key_values(labels, "label", bare=True)
    if expires > 0:
        at = time.time_ns() + int(expires * 1e9)
        given[EXPIRE_LABEL] = rfc3339(at - at % 1_000_000_000) or ""
    print(session.call("leases.create", id=lease_id, labels=given)["lease"]["id"])


@leases.verb("resources")
@grammar.argument("lease_id", metavar="ID")
@format_option
def resources(session: Session, lease_id: str) -> None:
    """list what a lease holds

    \b
      ctl leases resources build
    """
    listing(
        session.json,
        session.call("leases.resources", id=lease_id)["resources"],
        ("TYPE", "RESOURCE"),
        lambda row: (row["type"], row["resource"]),
        min_width=1,
        padding=1,
    )


@leases.verb("add")
@grammar.argument("lease_id", metavar="ID")
@grammar.argument("type_", metavar="TYPE")
@grammar.argument("resource", metavar="RESOURCE")
def add(session: Session, lease_id: str, type_: str, resource: str) -> None:
    """hold one more resource: TYPE is content, images, ingests or snapshots/<snapshotter>

    \b
      ctl leases add build content sha256:…
    """
    session.call("leases.add_resource", id=lease_id, type=type_, resource=resource)


@leases.verb("delete del remove rm")
@force_option
@grammar.argument("lease_ids", nargs=-1, required=True, metavar="ID...")
@grammar.option("--sync", is_flag=True, help="Return when what it held is collected.")
def delete(session: Session, lease_ids: tuple[str, ...], sync: bool) -> int:
    """delete leases

    \b
      ctl leases delete build
    """
    return work_through(
        session, lease_ids, lambda id_: session.call("leases.delete", id=id_, sync=sync)
    )
