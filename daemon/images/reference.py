"""Image names as users type them, in full (Docker's reference grammar, distribution/reference).

nginx                → docker.io/library/nginx:latest
user/app:1           → docker.io/user/app:1
localhost:5000/app   → localhost:5000/app:latest
"""

import re
from dataclasses import dataclass

from lighter.daemon.content.digest import Digest
from lighter.proto.errors import InvalidArgument
from lighter.proto.references import split_registry

MAX_NAME = 255

_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?",
    re.ASCII,
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)


def is_repository(text: str) -> bool:
    """Whether it can stand between a registry and a tag."""
    return len(text) <= MAX_NAME and all(map(_COMPONENT.fullmatch, text.split("/")))


@dataclass(frozen=True)
class Reference:
    """A full name, taken apart. `tag` or `digest` may be "", not both at once."""

    domain: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, name: str) -> "Reference":
        """The full form of what a user typed. Raises InvalidArgument."""
        if len(name) > 4 * MAX_NAME:
            raise InvalidArgument(f"parse image name {name[:60]!r}…: {len(name)} characters")
        rest, at, digest = name.partition("@")
        if at:
            Digest.parse(digest)
        domain, path = split_registry(rest)
        last = path.rpartition("/")[2]
        tag = last.partition(":")[2]
        repository = path.removesuffix(f":{tag}") if ":" in last else path
        if ":" in last and not _TAG.fullmatch(tag):
            raise InvalidArgument(f"parse image name {name!r}: {tag!r} is no tag")
        if not _DOMAIN.fullmatch(domain):
            raise InvalidArgument(f"parse image name {name!r}: {domain!r} is no registry")
        for component in repository.split("/"):
            if not _COMPONENT.fullmatch(component):
                raise InvalidArgument(
                    f"parse image name {name!r}: {component!r} is no part of one "
                    "(lower-case letters, digits and single '.', '_', '-' between them)"
                )
        if len(repository) > MAX_NAME:
            raise InvalidArgument(f"parse image name {name!r}: over {MAX_NAME} characters")
        if not tag and not at:
            tag = "latest"
        return cls(domain, repository, tag, digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.domain}/{self.repository}"

    @property
    def host(self) -> str:
        """The registry without its port; an IPv6 address without brackets."""
        host, colon, port = self.domain.rpartition(":")
        return (host if colon and port.isdigit() else self.domain).strip("[]")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return self.name + tag + (f"@{self.digest}" if self.digest else "")


def normalise(name: str) -> str:
    """The full form of `name`, with its tag or digest. Raises InvalidArgument."""
    return str(Reference.parse(name))
