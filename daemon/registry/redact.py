"""What may be told of a request: no secret, and nothing that a terminal would act on (SEC-31).

Whatever leaves this package in an error, a log line or a test's steps has gone through here.
"""

import base64
import re
from urllib.parse import quote, urlsplit

HIDDEN = "<hidden>"
MAX_TEXT = 300

_SHORTEST_SECRET = 4  # shorter ones would blot out words, and are found by patterns below
_AUTH_HEADER = re.compile(r"\b(basic|bearer)\s+[A-Za-z0-9+/=._~-]{6,}", re.IGNORECASE)
_TOKEN_FIELD = re.compile(
    r"((?:access_token|refresh_token|identity_?token|id_token|token|password|secret)"
    r"[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,}]+",
    re.IGNORECASE,
)
# No scheme is that long, and without a bound 64 KiB of "a." take half a minute.
_URL = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[^\s\"'<>]+", re.IGNORECASE)


def url(text: str) -> str:
    """An address without user, password, query and fragment: signed addresses are secrets too."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    user = f"{HIDDEN}@" if "@" in parts.netloc else ""
    query = f"?{HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{user}{host}{parts.path}{query}"


class Redactor:
    """Knows the secrets of one conversation, and takes them out of texts."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()

    def learn(self, *secrets: str) -> None:
        """From now on hide these, plain, percent-encoded and in base64."""
        for secret in secrets:
            if len(secret) >= _SHORTEST_SECRET:
                encoded = base64.b64encode(secret.encode()).decode()
                self._secrets.update((secret, quote(secret, safe=""), encoded.rstrip("=")))

    def learn_basic(self, username: str, secret: str) -> None:
        """A pair, and the header value that both make."""
        self.learn(secret)
        self.learn(base64.b64encode(f"{username}:{secret}".encode()).decode())

    def clean(self, text: str) -> str:
        """`text` without secrets and control characters, of at most MAX_TEXT characters."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        text = _URL.sub(lambda found: url(found[0]), text)
        text = _AUTH_HEADER.sub(lambda found: f"{found[1]} {HIDDEN}", text)
        text = _TOKEN_FIELD.sub(lambda found: found[1] + HIDDEN, text)
        text = "".join(sign if sign.isprintable() else " " for sign in text)
        text = " ".join(text.split())
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
