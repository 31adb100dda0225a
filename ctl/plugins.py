"""`ctl plugins`: the manager's parts, by the names that ctr prints."""

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.output import listing


@grammar.group("plugins")
def plugins(_session: Session) -> None:
    """Look at the manager's parts.

    \b
      ctl plugins ls
    """


@plugins.verb("list ls")
@grammar.option("--quiet", "-q", is_flag=True, help="Ids alone.")
@grammar.option("--detailed", "-d", is_flag=True, help="Why a part cannot be used, too.")
@format_option
def list_(session: Session, quiet: bool, detailed: bool) -> None:
    """list parts: skip is what this host cannot use

    \b
      ctl plugins list
    """
    rows = session.call("system.plugins")["plugins"]
    if quiet:
        for row in rows:
            print(row["id"])
        return
    listing(
        session.json,
        rows,
        ("TYPE", "ID", "PLATFORMS", "STATUS"),
        lambda row: (
            row["type"],
            row["id"],
            f"linux/{row['architecture']}" if row["architecture"] else "-",
            (f"skip: {row['problem']}" if detailed else "skip") if row["problem"] else "ok",
        ),
    )
