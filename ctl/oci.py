"""`ctl oci`: OCI specs."""

from lighter.ctl import grammar
from lighter.ctl.cli import Session
from lighter.ctl.output import json_text


@grammar.group("oci")
def oci(_session: Session) -> None:
    """Look at OCI specs.

    \b
      ctl oci spec > config.json    # then give it root.path, absolute, and process.args
      ctl run --config config.json box
    """


@oci.verb("spec")
def spec(session: Session) -> None:
    """print the spec that a container starts from

    \b
      ctl oci spec > config.json
    """
    import json

    shown = json.loads(session.call("oci.spec")["spec"])
    print(json_text(shown, indent=4))
