"""Digests: the only names that content has, and so the only ones that become paths and URLs.

OCI image-spec, "Digests". Of its registered algorithms sha256 alone is taken: it is what every
registry and every image tool writes, and the store has one directory.
"""

import hashlib
import re

from lighter.proto.errors import InvalidArgument

# fullmatch, because "$" would accept a trailing newline.
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Digest(str):
    """A text that is known to be `sha256:` and 64 lower-case hex digits."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> "Digest":
        """Raises InvalidArgument for everything that is not exactly a digest."""
        if not isinstance(text, str) or not _SHA256.fullmatch(text):
            shown = repr(text)[:100]
            raise InvalidArgument(f"parse digest {shown}: expected sha256: and 64 hex digits")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> "Digest":
        """The digest of these bytes."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @property
    def hex(self) -> str:
        """The 64 digits: a safe name of one path component."""
        return self[7:]
