"""`ctl system df`, `prune` and `check`: who takes the room, what nobody needs, what is damaged."""

from lighter.ctl.cli import Session
from lighter.ctl.output import listing, print_json, size_text, table, visible

_MEANING = {
    "image": "content and layers of images",
    "container": "written by containers, and layers of images that are gone",
    "kept": "by leases, labels or work alone",
    "orphan": "nobody's: prune takes it, unless no record knows it",
    "ingest": "arriving, or left by a transfer that broke off",
    "logs": "what containers have printed",
    "database": "",
    "other": "",
}


def df(session: Session) -> None:
    """Print the account of the root's bytes."""
    rows = session.call("system.df")["usage"]
    if session.json:
        print_json(rows)
        return
    cells = [
        (row["kind"].upper(), row["count"], size_text(row["size_bytes"]), _MEANING[row["kind"]])
        for row in rows
    ]
    total = size_text(sum(row["size_bytes"] for row in rows))
    table(("KIND", "COUNT", "SIZE", "WHAT"), [*cells, ("TOTAL", "", total, "")], padding=2)


def prune(session: Session, *, dry_run: bool) -> None:
    """Collect, and print what went, or would."""
    rows = session.call("system.prune", dry_run=dry_run)["pruned"]
    things = []
    for row in rows:
        names = [("content", digest) for digest in row["content"]]
        names += [("snapshot", f"{one['snapshotter']}/{one['key']}") for one in row["snapshots"]]
        names += [("image", name) for name in row["images"]]
        names += [("ingest", ref) for ref in row["ingests"]]
        things += [{"namespace": row["namespace"], "kind": k, "name": n} for k, n in names]
    if session.json:
        print_json(rows)
        return
    listing(
        False,
        things,
        ("NAMESPACE", "KIND", "NAME"),
        lambda thing: (thing["namespace"], thing["kind"], thing["name"]),
        padding=2,
    )
    size = size_text(sum(row["size_bytes"] for row in rows))
    print(f"{'would be freed' if dry_run else 'freed'}: {size}")


def check(session: Session, *, repair: bool) -> int:
    """Print what a check of the stores finds, as it is found; 1 when something is left."""
    call = session.manager.begin("system.check", repair=repair)
    rows = []
    for row in call:
        rows.append(row)
        if not session.json:
            of = f" (namespace {row['namespace']})" if row["namespace"] else ""
            note = f": {row['note']}" if row["note"] else ""
            line = f"{row['outcome']}: {row['kind']} {row['name']}{of}: {row['problem']}{note}"
            print(visible(line), flush=True)
    done = call.result()
    if session.json:
        print_json({"findings": rows, **done})
    else:
        blobs = f"{done['blobs']} blobs ({size_text(done['bytes'])})"
        found = f"{done['found'] or 'no'} findings, {done['repaired']} repaired"
        print(f"{blobs}, {done['snapshots']} snapshots: {found}")
    return int(done["found"] > done["repaired"])
