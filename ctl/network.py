"""`ctl network`: networks of containers, by CNI; and `ctl port`."""

import contextlib
import re
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, force_option, format_option
from lighter.ctl.lists import where
from lighter.ctl.output import listing, print_json
from lighter.ctl.resolve import resolved, work_through
from lighter.proto.errors import NotFound

_NAME = grammar.argument("name", metavar="NETWORK")
_REF = grammar.argument("ref", metavar="CONTAINER")
_REFS = grammar.argument("refs", nargs=-1, metavar="[CONTAINER...]")


@grammar.group("network")
def network(_session: Session) -> None:
    """Manage networks: CNI's configurations, and who is attached to them.

    \b
      ctl network create web --subnet 10.9.0.0/24
      ctl run -d --network web -p 8080:80 docker.io/library/nginx:alpine site
      ctl network connect web db
      ctl network inspect web
    """


@network.verb("list ls")
@grammar.option("--quiet", "-q", is_flag=True, help="Names alone.")
@format_option
def list_(session: Session, quiet: bool) -> None:
    """list networks; * is the default one

    \b
      ctl network list
    """
    answer = session.call("networks.list")
    rows = answer["networks"]
    if quiet:
        for row in rows:
            print(row["name"])
    else:
        listing(
            session.json,
            rows,
            ("NETWORK", "VERSION", "PLUGINS", "SUBNETS", "FILE"),
            lambda row: (
                row["name"] + ("*" if row["default"] else ""),
                row["version"],
                ",".join(row["types"]),
                ",".join(row["subnets"]) or "-",
                row["path"],
            ),
        )
    session.warn([f"{one['path']}: {one['reason']}" for one in answer["unusable"]])
    session.warn([f"network {row['name']}: {row['reason']}" for row in rows if row["reason"]])


@network.verb("inspect")
@grammar.argument("names", nargs=-1, required=True, metavar="NETWORK...")
@format_option
def inspect(session: Session, names: tuple[str, ...]) -> int:
    """print configurations and who is attached, as JSON

    \b
      ctl network inspect default
    """

    def show(name: str) -> None:
        print_json(session.call("networks.get", name=name)["network"])

    return work_through(session, names, show, shown=False)


@network.verb("create")
@grammar.option(
    "--driver",
    "-d",
    type=grammar.Choice(("bridge", "macvlan", "ipvlan", "ptp")),
    default="bridge",
    show_default=True,
    help="How containers are connected.",
)
@grammar.option("--subnet", multiple=True, metavar="CIDR", help="Addresses; IPv4, IPv6 or both.")
@grammar.option("--gateway", multiple=True, metavar="ADDRESS", help="The host's own in a subnet.")
@grammar.option("--ip-range", metavar="CIDR", default="", help="Give out only these of the subnet.")
@grammar.option("--ipv6", is_flag=True, help="IPv6 too; a subnet is made up unless one is named.")
@grammar.option(
    "--internal",
    is_flag=True,
    help="Of a bridge: no way out but to the host, nothing is published.",
)
@grammar.option(
    "--parent", default="", metavar="INTERFACE", help="The host's, of macvlan or ipvlan."
)
@grammar.option("--mtu", type=int, default=0, help="Largest packet.  [default: the plugin's]")
@_NAME
def create(session: Session, /, name: str, subnet: tuple[str, ...], **options: Any) -> None:
    """write a configuration for a new network

    \b
      ctl network create --subnet 10.9.0.0/24 back
    """
    gateways = options.pop("gateway")
    made = session.call(
        "networks.create", name=name, subnets=list(subnet), gateways=list(gateways), **options
    )
    print(made["name"])


@network.verb("remove rm delete del")
@grammar.argument("names", nargs=-1, required=True, metavar="NETWORK...")
def remove(session: Session, names: tuple[str, ...]) -> int:
    """remove networks that ctl created and nobody uses

    \b
      ctl network remove back
    """
    return work_through(session, names, lambda name: session.call("networks.delete", name=name))


@network.verb("connect")
@force_option
@grammar.option("--ip", default="", metavar="ADDRESS", help="Its IPv4 address.")
@grammar.option("--ip6", default="", metavar="ADDRESS", help="Its IPv6 address.")
@grammar.option("--mac-address", default="", metavar="MAC", help="Its hardware address.")
@_NAME
@_REF
def connect(session: Session, name: str, ref: str, ip: str, ip6: str, mac_address: str) -> None:
    """attach a container, running or not, to one network more

    \b
      ctl network connect back web
    """
    made = resolved(
        session,
        ref,
        lambda id_: session.call(
            "networks.connect", id=id_, name=name, ip=ip, ip6=ip6, mac=mac_address
        ),
    )
    if made["ifname"]:
        print(made["ifname"], *made["addresses"])


@network.verb("disconnect")
@force_option
@_NAME
@_REF
def disconnect(session: Session, name: str, ref: str) -> None:
    """detach a container from a network

    \b
      ctl network disconnect back web
    """
    resolved(session, ref, lambda id_: session.call("networks.disconnect", id=id_, name=name))


@network.verb("check")
@_REFS
@format_option
def check(session: Session, refs: tuple[str, ...]) -> int:
    """have the plugins look at what is attached; fails when something is broken

    \b
      ctl network check web
    """
    return _print_checked(session, *_all(session, "networks.check", refs))


@network.verb("reload")
@grammar.option("--force", "-f", is_flag=True, help="What is not broken too.")
@_REFS
@format_option
def reload(session: Session, refs: tuple[str, ...], force: bool) -> int:
    """attach anew what is broken, for one after the host's rules were flushed

    \b
      ctl network reload
    """
    return _print_checked(session, *_all(session, "networks.reload", refs, force=force))


def _all(
    session: Session, method: str, refs: tuple[str, ...], **fields: Any
) -> tuple[list[Any], int]:
    """The answers for these containers, or for all that have a network: those of every namespace,
    since a host's rules are of none, unless -n names one. And an exit code: what fails for one is
    told, and the others have their turn.
    """
    rows: list[Any] = []

    def ask(container_id: str, namespace: str = session.namespace) -> None:
        call = session.manager.begin(method, namespace=namespace, id=container_id, **fields)
        rows.extend(call.result()["checked"])

    if refs:
        code = work_through(session, refs, lambda ref: resolved(session, ref, ask), shown=False)
        return rows, code
    spaces = [session.namespace]
    if not session.namespace_given:
        spaces = [one["name"] for one in session.call("namespaces.list")["namespaces"]]
    code = 0
    for space in spaces:
        tasks = session.manager.begin("tasks.list", namespace=space).result()["tasks"]

        def ask_if_there(container_id: str, namespace: str = space) -> None:
            with contextlib.suppress(NotFound):  # it has ended meanwhile
                ask(container_id, namespace)

        ids = tuple(task["id"] for task in tasks if task["networks"])
        code |= work_through(session, ids, ask_if_there, shown=False)
    return rows, code


def _print_checked(session: Session, rows: list[Any], code: int) -> int:
    if code and not rows and not session.json:
        return code  # whose reason was told
    listing(
        session.json,
        rows,
        ("NAMESPACE", "CONTAINER", "NETWORK", "INTERFACE", "STATUS", "REASON"),
        lambda row: (
            row["namespace"],
            row["id"],
            row["network"],
            row["ifname"],
            "repaired" if row["repaired"] else row["status"],
            row["reason"] or "-",
        ),
    )
    return code or int(any(row["status"] == "failed" for row in rows))


@grammar.command("port")
@_REF
@grammar.argument("wanted", required=False, metavar="[PORT[/PROTO]]")
def port(session: Session, ref: str, wanted: str | None) -> int:
    """List a container's published ports, or where one of them is.

    \b
      ctl port web 80/tcp
    """
    if wanted is not None and not re.fullmatch(r"\d+(/[a-z]+)?", wanted, re.ASCII):
        raise grammar.UsageError(f"port {wanted}: expected PORT or PORT/PROTO")
    task = resolved(session, ref, lambda id_: session.call("tasks.get", id=id_)["task"])
    found = 0
    for one in task["ports"]:
        inside = f"{one['container_port']}/{one['protocol']}"
        if wanted in (None, inside) or (wanted == str(one["container_port"])):
            found += 1
            print(f"{inside} -> {where(one)}" if wanted is None else where(one))
    if wanted is not None and not found:
        session.complain(f"port {wanted} of {ref} is not published")
        return 1
    return 0
