"""Dataclasses that cost a start little.

For each class `dataclasses` writes its methods as text and compiles them: 0.2 to 1 ms, and a
manager needs thirty classes before it can answer. These share the methods below. All else is the
standard library's, so that its `field`, `fields`, `replace` and `asdict` are used as ever.
"""

from dataclasses import MISSING, FrozenInstanceError, dataclass, field
from typing import Any, NoReturn, TypeVar, dataclass_transform

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: Class) -> Class:
    """As `dataclass(frozen=True)`."""
    made: Any = mutable(cls)
    made.__setattr__ = made.__delattr__ = _refuse
    made.__hash__ = _hash
    return cls


@dataclass_transform(field_specifiers=(field,))
def mutable(cls: Class) -> Class:
    """As `dataclass`: it can be changed, so it has no hash."""
    made: Any = cls
    made.__doc__ = made.__doc__ or made.__name__  # which `dataclass` would ask `inspect` for
    made.__init__, made.__repr__, made.__eq__, made.__hash__ = _init, _repr, _eq, None
    known = dataclass(init=False, repr=False, eq=False)(made).__dataclass_fields__.values()
    made._names = tuple(one.name for one in known)
    made._shown = tuple(one.name for one in known if one.repr)
    made._compared = tuple(one.name for one in known if one.compare)
    made._defaults = {one.name: one.default for one in known if one.default is not MISSING}
    made._factories = {
        one.name: one.default_factory for one in known if one.default_factory is not MISSING
    }
    return cls


def _init(self: Any, *args: Any, **given: Any) -> None:
    names, values = self._names, vars(self)
    values.update(zip(names, args, strict=False))
    for name in names[len(args) :]:
        if name in given:
            values[name] = given.pop(name)
        elif name in self._defaults:
            values[name] = self._defaults[name]
        elif name in self._factories:
            values[name] = self._factories[name]()
        else:
            raise TypeError(f"make {type(self).__name__}: {name} is missing")
    if given or len(args) > len(names):
        wrong = next(iter(given), "an argument")
        raise TypeError(f"make {type(self).__name__}: {wrong} is unknown, or given twice")


def _key(self: Any) -> tuple[Any, ...]:
    values = vars(self)
    return tuple([values[name] for name in self._compared])


def _eq(self: Any, other: object) -> Any:
    return _key(self) == _key(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_key(self))


def _repr(self: Any) -> str:
    values = vars(self)
    shown = ", ".join(f"{name}={values[name]!r}" for name in self._shown)
    return f"{type(self).__qualname__}({shown})"


def _refuse(self: Any, name: str, *_value: Any) -> NoReturn:
    raise FrozenInstanceError(f"change {type(self).__name__}: {name} is fixed")
