"""`ctl version` and `ctl system`: what the client and the manager are, and how they are."""

import time

from lighter.ctl import grammar
from lighter.ctl.cli import DURATION, Session, format_option
from lighter.ctl.output import for_how_long, listing, print_json, rfc3339, size_text, table
from lighter.proto.errors import ResourceExhausted
from lighter.proto.version import VERSION

AGAIN_S = 0.2


@grammar.command("version")
@format_option
def version(session: Session) -> None:
    """Print the client and server versions.

    \b
      ctl version
      ctl version --format json
    """
    server = session.call("version.get")
    if session.json:
        print_json({"client": {"version": VERSION}, "server": server})
        return
    print(f"Client:\n  Version:  {VERSION}\n")
    print("Server:")
    for name in ("version", "revision"):
        print(f"  {name.capitalize() + ':':<9} {server[name]}")
    print(f"  {'UUID:':<9} {server['uuid']}")


@grammar.group("system")
def system(_session: Session) -> None:
    """Look at the manager itself.

    \b
      ctl system info
    """


@system.verb("info")
@format_option
def info(session: Session) -> None:
    """show the manager's identity, directories and health

    \b
      ctl system info
    """
    facts = {**session.call("version.get"), **session.call("system.health")}
    if session.json:
        print_json(facts)
        return
    for name, value in facts.items():
        shown = rfc3339(value) if name.endswith("_at") else value
        print(f"{name.replace('_', ' ')}: {shown}")


@system.verb("shims")
@format_option
def shims(session: Session) -> None:
    """list the shims: one process per container

    \b
      ctl system shims
    """
    now = time.time_ns()
    listing(
        session.json,
        session.call("system.shims")["shims"],
        ("NAMESPACE", "CONTAINER", "PID", "STATE", "VERSION", "PROTOCOL", "AGE", "PSS", "REASON"),
        lambda shim: (
            shim["namespace"],
            shim["id"],
            shim["pid"],
            shim["state"],
            shim["version"] or "-",
            shim.get("protocol") or "-",
            for_how_long(shim["started_at"], now) if shim.get("started_at") else "-",
            "-" if shim["pss_bytes"] is None else size_text(shim["pss_bytes"]),
            shim.get("reason", ""),
        ),
    )


@system.verb("overhead")
@format_option
def overhead(session: Session) -> None:
    """show what running containers costs beside the containers

    PSS counts a page that several processes share in equal parts, so that the sum is the truth.

    \b
      ctl system overhead
    """
    own = session.call("system.processes")["processes"]
    shims = [row for row in session.call("system.shims")["shims"] if row["pss_bytes"]]
    pss = [row["pss_bytes"] for row in shims]
    total = sum(pss) + sum(row["pss_bytes"] for row in own.values())
    if session.json:
        each = {"namespace", "id", "pid", "pss_bytes"}
        print_json(
            {
                **own,
                "shims": [{key: row[key] for key in sorted(each)} for row in shims],
                "shims_pss_bytes": sum(pss),
                "total_pss_bytes": total,
            }
        )
        return
    rows = [
        (name, row["pid"], size_text(row["pss_bytes"]), size_text(row["rss_bytes"]),
         f"{row['cpu_s']:.1f}s", row["threads"], row["fds"])
        for name, row in own.items()
    ]  # fmt: skip
    table(("PROCESS", "PID", "PSS", "RSS", "CPU", "THREADS", "FDS"), rows)
    print()
    table(
        ("NAMESPACE", "CONTAINER", "SHIM", "PSS"),
        [(row["namespace"], row["id"], row["pid"], size_text(row["pss_bytes"])) for row in shims],
    )
    mean = f", {size_text(sum(pss) // len(pss))} each" if pss else ""
    print(f"\n{len(pss)} shims: {size_text(sum(pss))}{mean}; with the manager {size_text(total)}")


@system.verb("reload")
@grammar.option(
    "--manager", default="", metavar="COMMAND", help="Of the socket that its configuration names."
)
@format_option
def reload(session: Session, manager: str) -> None:
    """make the manager read its configuration again

    \b
      ctl system reload
    """
    if manager:
        from lighter.ctl.standin import find

        find(session, manager)
    done = session.call("system.reload")
    if session.json:
        print_json(done)
        return
    for change in done["changed"]:
        print(change)
    session.warn([f"{key} is taken over at the next start" for key in done["at_next_start"]])


@system.verb("accept-loss")
@format_option
def accept_loss(session: Session) -> None:
    """let go of what lost rows of a mended database may have needed

    Since it was mended nothing was removed for want of a row that needs it: layers, snapshots,
    logs. From now on it is.

    \b
      ctl system accept-loss
    """
    done = session.call("system.accept_loss")
    if session.json:
        print_json(done)
    else:
        print(done["loss"] or "nothing is lost")


@system.verb("stop-containers")
@grammar.option(
    "--timeout", "-t", type=DURATION, default="60s", show_default=True, help="Until KILL is sent."
)
@grammar.option(
    "--manager",
    default="",
    metavar="COMMAND",
    help="Of the socket that its configuration names; run when none serves.",
)
def stop_containers(session: Session, timeout: float, manager: str) -> int:
    """stop all containers of all namespaces, and print which

    Each gets its stop signal, and KILL when the time is over. They stay defined; nothing is
    removed. A manager that has no room for this call is asked again until then.

    \b
      ctl system stop-containers
    """
    from lighter.ctl.standin import find, stand_in

    find(session, manager)
    with stand_in(session, manager):
        until, left_s = time.monotonic() + timeout, timeout
        while True:
            try:
                return _stop_containers(session, left_s)
            except ResourceExhausted:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise
                time.sleep(AGAIN_S)
                session.manager.renew()


def _stop_containers(session: Session, timeout_s: float) -> int:
    call = session.manager.begin("system.stop_containers", timeout_s=timeout_s)
    for end in call:
        name = f"{end['namespace']}/{end['id']}"
        if end["exit_status"] is None:
            session.complain(end["error"])
        else:
            print(f"stopped {name} (exit status {end['exit_status']})", flush=True)
    return 1 if call.result()["failed"] else 0


@system.verb("support")
@grammar.option(
    "--output", "-o", default="", metavar="FILE", help="Where to; - for standard output."
)
@grammar.option(
    "--lighterd",
    default="lighterd",
    show_default=True,
    metavar="COMMAND",
    help="Whose `doctor` is asked when no manager serves.",
)
def support(session: Session, output: str, lighterd: str) -> None:
    """write a bundle for a report of a fault: what is here, how it is, what was logged

    No output of containers, no values of their variables, arguments and labels, no credentials.

    \b
      ctl system support
      ctl system support -o /tmp/fault.tar.gz
    """
    from lighter.ctl.support import write

    write(session, output, lighterd)


@system.verb("df")
@format_option
def df(session: Session) -> None:
    """show what takes the disk space below the manager's root

    \b
      ctl system df
    """
    from lighter.ctl import disk

    disk.df(session)


@system.verb("check")
@grammar.option("--repair", is_flag=True, help="Remove what is damaged or nobody's.")
@format_option
def check(session: Session, repair: bool) -> int:
    """compare records with files, and every blob with its digest

    Reads all that is stored, beside everything else. Exit status 1 when something is left as it is.
    With --repair damaged blobs go with their records, so that the next pull brings them again, and
    so do files and directories that no record knows. What something needs stays and is named.

    \b
      ctl system check
      ctl system check --repair
    """
    from lighter.ctl import disk

    return disk.check(session, repair=repair)


@system.verb("prune")
@grammar.option("--dry-run", is_flag=True, help="Only show what would go.")
@format_option
def prune(session: Session, dry_run: bool) -> None:
    """remove what nothing needs, in all namespaces

    Content, layers and broken-off transfers. Never an image or a container.

    \b
      ctl system prune
    """
    from lighter.ctl import disk

    disk.prune(session, dry_run=dry_run)
