"""Reading a request's body: each field by name and type, with the caller told what is wrong."""

import math
from collections.abc import Mapping
from typing import Any

from lighter.proto.errors import InvalidArgument
from lighter.proto.names import check_name

SIGNALS = range(1, 65)
_INT64 = range(-(1 << 63), 1 << 63)  # what SQLite and C take


class Fields:
    """The body of one request. A missing field takes the default, a wrong type is an error."""

    def __init__(self, method: str, body: Mapping[str, Any]) -> None:
        self._method = method
        self._body = body

    def _get(self, name: str, kinds: type | tuple[type, ...], default: Any, what: str) -> Any:
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is int):
            raise self._wrong(name, what, value)
        return value

    def _wrong(self, name: str, what: str, value: object) -> InvalidArgument:
        return InvalidArgument(
            f"read request {self._method}: {name} is {type(value).__name__}, not {what}"
        )

    def _no_nul(self, name: str, value: str) -> str:
        """Paths, arguments and environments end at a NUL in the kernel."""
        if "\0" in value:
            raise InvalidArgument(f"read request {self._method}: {name} holds a NUL byte")
        return value

    def text(self, name: str, default: str = "") -> str:
        value: str = self._get(name, str, default, "text")
        return self._no_nul(name, value)

    def needed(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise InvalidArgument(f"read request {self._method}: {name} is missing")
        return value

    def raw(self, name: str) -> bytes:
        """Bytes that are there: a path of a container, in whatever encoding."""
        value: bytes = self._get(name, bytes, b"", "bytes")
        if not value or b"\0" in value:
            raise InvalidArgument(f"read request {self._method}: {name} is missing, or holds a NUL")
        return value

    def text_or_none(self, name: str) -> str | None:
        """The text; None when it is missing, null or empty."""
        return self.text(name) or None

    def name_or_none(self, name: str) -> str | None:
        """As text_or_none, but "" stays: an empty name is an error, not a choice to have none."""
        return self.text(name) if self._body.get(name) is not None else None

    def id(self, name: str = "id", what: str = "container") -> str:
        """The id of a `what`, by the rules of proto/names."""
        return check_name(self.text(name), what)

    def exec_id(self) -> str:
        """The id of an exec; "" means the container's own process."""
        return self.id("exec_id", "exec") if self.text("exec_id") else ""

    def flag(self, name: str, default: bool = False) -> bool:
        value: bool = self._get(name, bool, default, "true or false")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        value: int = self._get(name, int, default, "a whole number")
        if value not in _INT64:
            raise InvalidArgument(
                f"read request {self._method}: {name} is {value}, more than 64 bits hold"
            )
        return value

    def integer_or_none(self, name: str) -> int | None:
        return self.integer(name) if self._body.get(name) is not None else None

    def seconds(self, name: str, default: float) -> float:
        """A length of time: not negative, not infinite."""
        value = self._get(name, (int, float), default, "a number")
        if isinstance(value, bool):
            raise self._wrong(name, "a number", value)
        if not (0 <= value < math.inf):
            raise InvalidArgument(
                f"read request {self._method}: {name} is {value}, no length of time"
            )
        return float(value)

    def seconds_or_none(self, name: str) -> float | None:
        return self.seconds(name, 0.0) if self._body.get(name) is not None else None

    def number_or_none(self, name: str) -> float | None:
        """A finite number; None when it is missing or null."""
        value = self._get(name, (int, float), None, "a number")
        if isinstance(value, bool) or (value is not None and not math.isfinite(value)):
            raise self._wrong(name, "a number", value)
        return None if value is None else float(value)

    def signal_or_none(self, name: str) -> int | None:
        number = self.integer_or_none(name)
        if number is not None and number not in SIGNALS:
            raise InvalidArgument(f"read request {self._method}: {number} is no signal number")
        return number

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._get(name, (list, tuple), [], "a list")
        for value in values:
            if not isinstance(value, str):
                raise self._wrong(name, "a list of texts", value)
            self._no_nul(name, value)
        return tuple(values)

    def texts_or_none(self, name: str) -> tuple[str, ...] | None:
        return self.texts(name) if self._body.get(name) is not None else None

    def labels(self, name: str = "labels") -> dict[str, str]:
        values = self.mapping(name)
        for key, value in values.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise self._wrong(name, "a map of texts", value)
            self._no_nul(name, key + value)
        return dict(values)

    def mapping(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = self._get(name, dict, {}, "a map")
        return value

    def inner(self, name: str) -> "Fields":
        """The fields of a map within this one; a missing one has none."""
        return Fields(f"{self._method}: {name}", self.mapping(name))

    def mappings(self, name: str) -> tuple[dict[str, Any], ...]:
        values = self._get(name, (list, tuple), [], "a list")
        for value in values:
            if not isinstance(value, dict):
                raise self._wrong(name, "a list of maps", value)
        return tuple(values)

    def lists(self, name: str) -> tuple[Any, ...]:
        """A list of lists; who takes them looks into them."""
        values = self._get(name, (list, tuple), [], "a list")
        for value in values:
            if not isinstance(value, list | tuple):
                raise self._wrong(name, "a list of lists", value)
        return tuple(values)
