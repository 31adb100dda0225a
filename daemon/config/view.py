"""A configuration for other eyes than its owner's: in a bundle for a bug report, in an answer."""

from typing import Any

from lighter.daemon.config.schema import Config, document
from lighter.daemon.registry import redact

HIDDEN = "(hidden)"
# Keys below which texts may be passwords, tokens, or addresses with one in them.
_SECRETS = {"args", "auth", "env", "headers", "proxy"}


def shown(config: Config) -> str:
    """The file that `dump` writes, with what may be a secret replaced by HIDDEN."""
    from lighter.daemon.config.text import text_of  # as seldom as it is asked for

    return text_of(_without_secrets(document(config)))


def _without_secrets(value: Any) -> Any:
    """A copy in which texts below a key of _SECRETS read HIDDEN, and addresses have no user and
    password.
    """
    if isinstance(value, dict):
        return {
            key: _hidden(inner) if key.lower() in _SECRETS else _without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return redact.url(value) if isinstance(value, str) and "://" in value else value


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return HIDDEN if value else value
