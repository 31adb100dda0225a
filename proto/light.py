"""Stand-ins for the names of `typing` that are there at run time.

Loading `typing` takes longer than all else that a short command of ctl loads. A module that such a
command needs imports the real names below `if TYPE_CHECKING:`, which a type checker reads, and
these otherwise. They do what our classes ask of them, and no more.
"""

from __future__ import annotations

from _operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Fields(tuple):  # type: ignore[type-arg]
    """A tuple whose items have names, those of `_fields`."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    def __new__(cls, *values: Any, **named: Any) -> _Fields:
        if named:
            values += tuple(named.pop(n) for n in cls._fields[len(values) :] if n in named)
        if named or len(values) != len(cls._fields):
            raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}")
        return tuple.__new__(cls, values)

    def _replace(self, **changes: Any) -> _Fields:
        return type(self)(*(changes.get(n, v) for n, v in zip(self._fields, self, strict=True)))

    def __repr__(self) -> str:
        pairs = zip(self._fields, self, strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"


class _Named(type):
    """Makes a tuple with names of a class with annotations; typing's way compiles source."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        if not bases:
            return super().__new__(cls, name, bases, body)
        fields = tuple(body.pop("__annotations__"))
        getters = {field: property(itemgetter(at)) for at, field in enumerate(fields)}
        made = {**body, **getters, "__slots__": (), "_fields": fields, "__match_args__": fields}
        return type(name, (_Fields,), made)


class NamedTuple(metaclass=_Named):
    """Fields without defaults."""


class Generic:
    """What stands in brackets is the type checker's."""

    __slots__ = ()

    def __class_getitem__(cls, _of: Any) -> type:
        return cls


class Protocol:
    """A class to be written against."""


def TypeVar(_name: str) -> None:
    """Nothing at run time."""
