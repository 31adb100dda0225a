"""`ctl events`: what happens, as it happens."""

import json
import re
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.moments import ago_ns, date_ns, epoch_ns, looks_like_a_date
from lighter.ctl.output import plain, print_json_line, progress, rfc3339
from lighter.proto.errors import Unimplemented


class Moment(grammar.Kind):
    """("sequence", number) of a plain number; ("time", ns) of RFC 3339, of @ and seconds since the
    epoch, or of how long ago it was (10m).
    """

    name = "moment"

    def convert(self, text: str) -> tuple[str, int]:
        if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
            return "sequence", int(text)
        if re.fullmatch(r"@[0-9]{1,10}(\.[0-9]{1,9})?", text, re.ASCII):
            return "time", epoch_ns(text[1:])
        return "time", date_ns(text) if looks_like_a_date(text) else ago_ns(text)


MOMENT = Moment()


@grammar.command("events")
@grammar.option(
    "--since",
    type=MOMENT,
    metavar="SEQUENCE|TIME",
    help="All after this number, or from this time on, first.",
)
@grammar.option(
    "--until", type=MOMENT, metavar="SEQUENCE|TIME", help="End after this number or time."
)
@grammar.option(
    "--filter",
    "-f",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="container, event, type, image, topic, namespace.",
)
@grammar.option("--no-follow", is_flag=True, help="End after what is recorded already.")
@format_option
@grammar.argument("expressions", nargs=-1, metavar="[FILTER]...")
def events(
    session: Session,
    since: tuple[str, int] | None,
    until: tuple[str, int] | None,
    filters: tuple[str, ...],
    no_follow: bool,
    expressions: tuple[str, ...],
) -> None:
    """Show events of all namespaces, or of the one that -n names.

    Each has a number: who asks for --since the last one that was seen misses none and sees none
    twice. FILTER words are containerd's expressions, of which any is enough.

    \b
      ctl events
      ctl -n moby --format json events --since 0
      ctl events --since 10m --filter container=web --filter event=exit
      ctl events 'topic~=^/tasks/' 'event.exit_status==137'
    """
    last = until[1] if until is not None and until[0] == "sequence" else None
    call = session.manager.begin(
        "events.subscribe",
        namespace=session.namespace if session.namespace_given else "",
        since=_begin(session, since, no_follow or until is not None),
        since_time=since[1] if since is not None and since[0] == "time" else None,
        until=last,
        until_time=until[1] if until is not None and until[0] == "time" else None,
        follow=not no_follow,
        filters=list(filters),
        expressions=list(expressions),
    )
    show = print_json_line if session.json else _show
    for item in call:
        if last is not None and item["sequence"] > last:  # a manager of the release before
            return
        show(item)


def _begin(session: Session, since: tuple[str, int] | None, from_the_first: bool) -> int | None:
    """The number to go on from. Of new ones only it is asked for first: a manager that ends before
    the first of them came would leave nothing to go on from.
    """
    if since is not None:
        return since[1] if since[0] == "sequence" else None
    if from_the_first:
        return 0
    try:
        return int(session.call("events.newest")["sequence"])
    except Unimplemented:  # of the release before
        return None


def _show(item: Any) -> None:
    body = json.dumps(plain(item["event"]), separators=(",", ":"), ensure_ascii=False)
    progress(f"{rfc3339(item['timestamp'])} {item['namespace']} {item['topic']} {body}")
