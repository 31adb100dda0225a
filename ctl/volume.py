"""`ctl volume`: directories that outlive containers."""

from collections.abc import Mapping
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option, key_values
from lighter.ctl.output import labels_text, listing, plain, print_json, size_text
from lighter.ctl.resolve import remove_each, work_through
from lighter.ctl.template import Template
from lighter.proto.errors import LighterError

_FIELDS = {
    "Name": ("VOLUME NAME", lambda row: row["name"]),
    "Driver": ("DRIVER", lambda _row: "local"),
    "Scope": ("SCOPE", lambda _row: "local"),
    "Mountpoint": ("MOUNTPOINT", lambda row: row["mountpoint"]),
    "Labels": ("LABELS", lambda row: labels_text(row["labels"])),
    "Links": ("LINKS", lambda row: str(len(row["containers"]))),
}


@grammar.group("volume")
def volumes(_session: Session) -> None:
    """Manage volumes.

    \b
      ctl volume create data
      ctl run -d --name db -v data:/var/lib/db IMAGE
      ctl volume inspect data
      ctl volume rm data
    """


@volumes.verb("create")
@grammar.option("--driver", "-d", default="local", show_default=True, help="There is one.")
@grammar.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the volume.")
@grammar.option("--opt", "-o", multiple=True, metavar="KEY=VALUE", help="None is taken.")
@grammar.argument("name", required=False)
def create(
    session: Session, name: str | None, driver: str, label: tuple[str, ...], opt: tuple[str, ...]
) -> None:
    """create a volume, and print its name; one that is there stays as it is

    \b
      ctl volume create site
    """
    made = session.call(
        "volumes.create",
        name=name,
        labels=key_values(label, "label", bare=True),
        driver=driver,
        options=key_values(opt, "option", bare=True),
    )
    print(made["volume"]["name"])


@volumes.verb("ls")
@grammar.option("--quiet", "-q", is_flag=True, help="Names alone.")
@grammar.option(
    "--filter", "-f", "filters", multiple=True, metavar="KEY=VALUE", help="name, label, dangling."
)
@grammar.option("--format", "template", metavar="table|json|TEMPLATE", help="Or a Go template.")
def ls(session: Session, quiet: bool, filters: tuple[str, ...], template: str | None) -> None:
    """list volumes

    \b
      ctl volume ls
    """
    tests = [_test(word) for word in filters]
    shown = template or session.format
    shape = None if shown in ("json", "table") else Template(shown, _FIELDS)
    rows = [
        row for row in session.call("volumes.list")["volumes"] if all(test(row) for test in tests)
    ]
    if quiet:
        for row in rows:
            print(row["name"])
    elif shape is not None:
        shape.print(rows)
    else:
        listing(
            shown == "json",
            rows,
            ("DRIVER", "VOLUME NAME", "CONTAINERS"),
            lambda row: ("local", row["name"], ",".join(row["containers"]) or "-"),
        )


def _test(word: str) -> Any:
    key, sign, value = word.partition("=")
    if not sign or key not in ("name", "label", "dangling"):
        raise grammar.UsageError(
            f"--filter {word!r}: expected name=, label= or dangling=true|false"
        )
    if key == "name":
        return lambda row: value in row["name"]
    if key == "dangling":
        wanted = value in ("true", "1")
        return lambda row: (not row["containers"]) == wanted
    name, sign, wanted_value = value.partition("=")
    return lambda row: name in row["labels"] and (not sign or row["labels"][name] == wanted_value)


@volumes.verb("inspect")
@grammar.option("--size", "-s", is_flag=True, help="What it takes on the disk, too.")
@grammar.option("--format", "template", metavar="TEMPLATE", help="A Go template.")
@grammar.argument("names", nargs=-1, required=True, metavar="VOLUME...")
def inspect(session: Session, names: tuple[str, ...], size: bool, template: str | None) -> int:
    """print all that is known about volumes, as JSON

    \b
      ctl volume inspect site
    """
    shape = Template(template, _FIELDS) if template and template != "json" else None
    found: list[Any] = []

    def look(name: str) -> None:
        found.append(session.call("volumes.get", name=name, size=size)["volume"])

    def show() -> None:
        if shape is not None:
            shape.print(found)
        else:
            print_json([as_docker(row) for row in found])

    try:
        code = work_through(session, names, look, shown=False)
    except (LighterError, KeyboardInterrupt):
        if found:
            show()
        raise
    show()
    return code


def as_docker(row: Mapping[str, Any]) -> dict[str, Any]:
    """Docker's names beside ours: its tools read these."""
    times = plain({"created_at": row["created_at"]})
    shown = {
        "Name": row["name"],
        "Driver": "local",
        "Mountpoint": row["mountpoint"],
        "CreatedAt": times["created_at"],
        "Labels": row["labels"],
        "Scope": "local",
        "Options": None,
        "Anonymous": row["anonymous"],
        "Containers": row["containers"],
    }
    if "size_bytes" in row:
        shown["UsageData"] = {"Size": row["size_bytes"], "RefCount": len(row["containers"])}
    return shown


@volumes.verb("rm remove delete del")
@grammar.option("--force", "-f", is_flag=True, help="One that is not there is no failure.")
@grammar.argument("names", nargs=-1, required=True, metavar="VOLUME...")
def rm(session: Session, names: tuple[str, ...], force: bool) -> int:
    """remove volumes that no container uses, with all that is in them

    \b
      ctl volume rm site
    """
    return remove_each(session, "volumes.delete", names, force=force)


@volumes.verb("prune")
@grammar.option("--all", "-a", "everything", is_flag=True, help="Named ones too.")
@grammar.option("--force", "-f", is_flag=True, help="Do not ask.")
@format_option
def prune(session: Session, everything: bool, force: bool) -> int:
    """remove all volumes without a name that no container uses

    \b
      ctl volume prune
    """
    if not force:
        what = "all volumes" if everything else "all anonymous volumes"
        from lighter.ctl.asking import confirm

        if not confirm(f"This removes {what} that no container uses. Go on?"):
            raise KeyboardInterrupt
    done = session.call("volumes.prune", all=everything)
    if session.json:
        print_json(done)
    else:
        for name in done["names"]:
            print(name)
        print(f"total reclaimed space: {size_text(done['size_bytes'])}")
    for problem in done["problems"]:
        session.complain(problem)
    return int(bool(done["problems"]))
