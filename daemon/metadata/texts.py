"""TEXT that is no UTF-8, as a bit that has flipped on the disk leaves it.

No check of SQLite's sees it, and Python would fail the whole query for it. Here it reads as a text
that can be shown and sent like any other, and says of itself what it is.
"""


class Unreadable(str):
    """With U+FFFD for what is no UTF-8; `raw` is what stands in the database."""

    __slots__ = ("raw",)

    raw: bytes


def text_of(raw: bytes) -> str:
    """A connection's `text_factory`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        text = Unreadable(raw.decode(errors="replace"))
        text.raw = raw
        return text


def restored(text: Unreadable) -> str:
    """What it was, if the highest bit of letters of ASCII has flipped."""
    letters = text.raw.decode(errors="surrogateescape")
    return "".join(
        chr(ord(letter) & 0x7F) if "\udc80" <= letter <= "\udcff" else letter for letter in letters
    )
