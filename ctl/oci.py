"""`ctl oci`: OCI specs."""

import click

from lighter.ctl.cli import Commands, Session


@click.group("oci", cls=Commands)
def oci() -> None:
    """Look at OCI specs.

    \b
      ctl oci spec > config.json
      ctl run --config config.json box
    """


@oci.verb("spec")
@click.pass_obj
def spec(session: Session) -> None:
    """print the spec that a container starts from"""
    import json

    shown = json.loads(session.call("oci.spec")["spec"])
    print(json.dumps(shown, indent=4, ensure_ascii=False))
