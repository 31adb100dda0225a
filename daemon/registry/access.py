"""What one request brings to reach a registry with: a credential, and how to speak to the host.

`ctl` reads the credential where the user keeps it and sends it with the request; the manager holds
it as long as the request lasts, and writes it nowhere. So it has no repr.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field

from lighter.daemon.values import frozen


@frozen
class Credential:
    """User name and secret, or an identity token, which has no user. All "" is anonymous."""

    username: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.secret or self.identity_token)

    @property
    def kind(self) -> str:
        """What may be told of it: "identity token", "password" or "none"."""
        if self.identity_token:
            return "identity token"
        return "password" if self else "none"


NO_CREDENTIAL = Credential()

# Asks whoever made the request for the credential of a host; raises LighterError.
Ask = Callable[[str], Awaitable[Credential]]


@frozen
class Access:
    """How a request wants its registry spoken to; it is about the reference's own registry alone.

    `hosts_dir` is looked in before the configured directories. `ca`, `cert` and `key` are paths of
    PEM files. `realms`: hosts that the user has agreed to give this credential to for a token.
    `ask` is for a request that brings no credential, and asked only when the registry asks us.
    `headers` go to the registry with all else.
    """

    credential: Credential = NO_CREDENTIAL
    plain_http: bool = False
    skip_verify: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    hosts_dir: str = ""
    realms: tuple[str, ...] = ()
    ask: Ask | None = field(default=None, repr=False)
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)


ANONYMOUS = Access()
