"""The map `access` of a request: how its registry is to be spoken to, with whose credential."""

from collections.abc import Mapping
from typing import Any

from lighter.daemon.registry.access import Access, Credential
from lighter.daemon.rpc.fields import Fields


def access_of(value: Mapping[str, Any]) -> Access:
    """Raises InvalidArgument for a field of a wrong type; no error quotes a value."""
    fields = Fields("access", value)
    return Access(
        credential=Credential(
            fields.text("username"), fields.text("secret"), fields.text("identity_token")
        ),
        plain_http=fields.flag("plain_http"),
        skip_verify=fields.flag("skip_verify"),
        ca=fields.text("ca"),
        cert=fields.text("cert"),
        key=fields.text("key"),
        hosts_dir=fields.text("hosts_dir"),
        realms=fields.texts("realms"),
    )
