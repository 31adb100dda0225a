"""Signals by name or number, as signal(7), Docker and kill(1) write them."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # the same numbers, without enums, which take 5 ms to load

_LAST = 64  # SIGRTMAX
_MOST_DIGITS = 8


def signal_number(name: str) -> "int | None":
    """Of "SIGTERM", "TERM", "term", "15", "RTMIN+3" or "SIGRTMAX-1"; None for what is no signal.

    Real-time signals are counted as glibc does, which keeps the kernel's first two: from 34 to 64.
    """
    number = _number(name)
    if number is None:
        number = _named(name.upper().removeprefix("SIG"))
    return number if 1 <= number <= _LAST else None


def _number(text: str) -> "int | None":
    digits = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    return int(text) if digits else None


def _named(name: str) -> int:
    """0 for no signal."""
    for edge, sign, step in (("RTMIN", "+", 1), ("RTMAX", "-", -1)):
        if name.startswith(edge + sign):
            offset = _number(name[len(edge) + 1 :])
            number = 0 if offset is None else int(getattr(signal, f"SIG{edge}")) + step * offset
            return number if number >= signal.SIGRTMIN else 0
    # Not SIG_BLOCK and its like, which are no signals.
    return int(getattr(signal, f"SIG{name}", 0)) if name.isalnum() else 0
