"""TOML with numbers of 64 bits, as its definition has them; tomllib takes those of any length."""

import tomllib
from typing import Any

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_TOO_LARGE = "a number is over 64 bits"


def loads(text: str) -> dict[str, Any]:
    """Raises ValueError (tomllib.TOMLDecodeError with the line, where there is one), and
    RecursionError for what is nested too deeply.

    A number of thousands of digits could be read (in hexadecimal), and not be shown in a complaint.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as err:  # of int(), for its digits
        raise ValueError(_TOO_LARGE) from err
    waiting: list[Any] = [table]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int) and not _LEAST <= value <= _MOST:
            raise ValueError(_TOO_LARGE)
    return table
