"""Whose credential a registry is shown: that of --user, or the refresh token that was given."""

import getpass

from lighter.proto.errors import InvalidArgument


def credentials_for(reference: str, user: str, refresh: str) -> dict[str, str]:
    """The credential's fields of a request's `access`; all "" for none.

    Without a password it is asked for on the terminal, not shown. Raises InvalidArgument where
    there is none.
    """
    if refresh:
        return {"username": "", "secret": "", "identity_token": refresh}
    name, colon, secret = user.partition(":")
    if name and not colon:
        try:
            secret = getpass.getpass(f"Password of {name} for {reference}: ")
        except EOFError as err:
            raise InvalidArgument(f"read password of {name}: there is none") from err
    return {"username": name, "secret": secret, "identity_token": ""}
