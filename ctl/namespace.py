"""`ctl namespaces`: worlds of images and containers that do not see each other."""

from lighter.ctl import grammar
from lighter.ctl.cli import Session, force_option, format_option, key_values
from lighter.ctl.output import labels_text, listing
from lighter.ctl.resolve import remove_each


@grammar.group("namespaces")
def namespaces(_session: Session) -> None:
    """Manage namespaces. They come into being by use; at first there is `default`.

    \b
      ctl namespaces create kubemsb team=web
      ctl -n kubemsb images import nginx.img
      ctl namespaces ls
    """


@namespaces.verb("list ls")
@grammar.option("--quiet", "-q", is_flag=True, help="Names alone.")
@format_option
def list_(session: Session, quiet: bool) -> None:
    """list namespaces

    \b
      ctl namespaces list
    """
    rows = session.call("namespaces.list")["namespaces"]
    if quiet:
        for row in rows:
            print(row["name"])
        return
    listing(
        session.json,
        rows,
        ("NAME", "LABELS"),
        lambda row: (row["name"], labels_text(row["labels"])),
        min_width=1,
        padding=1,
    )


@namespaces.verb("create c")
@grammar.argument("name")
@grammar.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
def create(session: Session, name: str, labels: tuple[str, ...]) -> None:
    """create a namespace

    \b
      ctl namespaces create build
    """
    session.call("namespaces.create", name=name, labels=key_values(labels, "label"))


@namespaces.verb("label")
@force_option
@grammar.argument("name")
@grammar.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
def label(session: Session, name: str, labels: tuple[str, ...]) -> None:
    """set labels of a namespace; an empty value clears one

    \b
      ctl namespaces label build owner=ci
    """
    session.call("namespaces.label", name=name, labels=key_values(labels, "label", bare=True))


@namespaces.verb("remove rm delete del")
@force_option
@grammar.option("--cgroup", "-c", is_flag=True, help="Remove its cgroup too, which is empty then.")
@grammar.argument("names", nargs=-1, required=True, metavar="NAME...")
def remove(session: Session, names: tuple[str, ...], cgroup: bool) -> int:
    """remove namespaces, which must be empty

    \b
      ctl namespaces remove build
      ctl namespaces remove --cgroup build
    """
    return remove_each(session, "namespaces.delete", names, force=False, cgroup=cgroup)
