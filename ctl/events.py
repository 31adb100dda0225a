"""`ctl events`: what happens, as it happens."""

import json
from typing import Any

import click

from lighter.ctl.cli import HELP_OPTIONS, Session, format_option
from lighter.ctl.output import plain, print_json_line, progress, rfc3339


@click.command("events", context_settings=HELP_OPTIONS)
@click.option("--since", type=click.IntRange(0), help="All after this sequence number first.")
@click.option("--no-follow", is_flag=True, help="End after what is recorded already.")
@format_option
@click.pass_obj
def events(session: Session, since: int | None, no_follow: bool) -> None:
    """Show events of all namespaces, or of the one that -n names.

    \b
      ctl events
      ctl -n moby --format json events --since 0
    """
    call = session.manager.begin(
        "events.subscribe",
        namespace=session.namespace if session.namespace_given else "",
        since=0 if since is None and no_follow else since,
        follow=not no_follow,
    )
    show = print_json_line if session.json else _show
    for item in call:
        show(item)


def _show(item: Any) -> None:
    body = json.dumps(plain(item["event"]), separators=(",", ":"), ensure_ascii=False)
    progress(f"{rfc3339(item['timestamp'])} {item['namespace']} {item['topic']} {body}")
