"""How much there may be in JSON that somebody else wrote, told before it is parsed.

json keeps the interpreter until it has the whole value, in a thread too. A few megabytes of "[],"
are half a second in which nobody else is served, and a hundred times their size in memory.
"""

MAX_VALUES = 100_000
MAX_DIGITS = 100


def check_values(data: bytes) -> None:
    """Raises ValueError for more than a document of this world has; commas in texts count too."""
    count = data.count(b",") + data.count(b"{") + data.count(b"[")
    if count > MAX_VALUES:
        raise ValueError(f"it has {count} values, at most {MAX_VALUES} are allowed")


def integer(text: str) -> int:
    """For `parse_int`: the time that int() takes grows with the square of the digits."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
