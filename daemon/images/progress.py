"""How a long piece of work on images tells how far it is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`status` is reading, importing, unpacking or done. Bytes are 0 where they are not known.

    `ref` is the image's name when it is known, `digest` what is worked on.
    """

    status: str
    ref: str = ""
    digest: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


Report = Callable[[Progress], None]


def unreported(_: Progress) -> None:
    """The Report of who does not care."""
