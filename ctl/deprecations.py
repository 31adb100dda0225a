"""`ctl deprecations` and `ctl sandboxes`: nouns of ctr that have nothing to show here."""

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.output import listing
from lighter.proto.errors import Unimplemented


@grammar.group("deprecations")
def deprecations(_session: Session) -> None:
    """Look at what is used and will go.

    \b
      ctl deprecations list
    """


@deprecations.verb("list ls")
@format_option
def list_(session: Session) -> None:
    """list uses of what a later release will not have: there is nothing yet that one takes away

    \b
      ctl deprecations list
    """
    session.call("version.get")  # an answer of nobody would be no answer
    listing(session.json, [], ("ID", "LAST OCCURRENCE", "MESSAGE"), lambda _row: ())


@grammar.group("sandboxes")
def sandboxes(_session: Session) -> None:
    """Pods of a sandbox controller, which this manager has none of.

    \b
      ctl sandboxes list
    """


def _none(_session: Session, words: tuple[str, ...]) -> None:
    """not to be had: there is no sandbox controller

    \b
      ctl sandboxes run
    """
    raise Unimplemented("sandboxes: this manager has no sandbox controller")


for _names in ("run create c r", "list ls", "remove rm"):
    sandboxes.verb(_names)(grammar.argument("words", nargs=-1)(_none))
