"""Our dataclasses against those of the standard library, whose stand-ins they are."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from lighter.daemon.values import frozen, mutable

_OF_THE_TYPE = ("__dict__", "__weakref__")


class _Shape:
    """One of each kind of field."""

    a: int
    b: str = "b"
    secret: str = field(default="", repr=False)
    place: str = field(default="", compare=False)
    kept: dict[str, int] = field(default_factory=dict)


def made_by(decorator: Callable[[Any], Any]) -> Any:
    inner = {name: of for name, of in vars(_Shape).items() if name not in _OF_THE_TYPE}
    return decorator(type("Shape", (), inner))


PAIRS = [
    pytest.param(made_by(frozen), made_by(dataclass(frozen=True)), id="frozen"),
    pytest.param(made_by(mutable), made_by(dataclass), id="mutable"),
]

ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, "x", "s", "p", {"n": 1}), {}),
    ((), {"kept": {"n": 2}, "a": 3}),
    ((1, "x"), {"place": "q"}),
    ((), {}),
    ((), {"b": "x"}),
    ((1,), {"a": 1}),
    ((1,), {"c": 1}),
    ((1, "x", "s", "p", {}, 6), {}),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_they_take_the_same_arguments_and_are_the_same(ours: Any, theirs: Any) -> None:
    for args, given in ARGUMENTS:
        try:
            expected = theirs(*args, **given)
        except TypeError:
            with pytest.raises(TypeError):
                ours(*args, **given)
        else:
            one = ours(*args, **given)
            assert list(vars(one).items()) == list(vars(expected).items())
            assert repr(one) == repr(expected)
            assert asdict(one) == asdict(expected)
            assert [item.name for item in fields(one)] == [item.name for item in fields(expected)]
            assert vars(replace(one, b="y")) == vars(replace(expected, b="y"))
            assert ours.__match_args__ == theirs.__match_args__


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_they_are_equal_when_what_is_compared_is(ours: Any, theirs: Any) -> None:
    for kind in (ours, theirs):
        assert kind(1, place="p") == kind(1, place="q")
        assert kind(1, secret="p") != kind(1, secret="q")
        assert kind(1) != object()
    assert ours(1) != theirs(1)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_what_a_factory_makes_is_each_ones_own(ours: Any, theirs: Any) -> None:
    one, other = ours(1), ours(1)
    one.kept["n"] = 1
    assert other.kept == {} == theirs(1).kept


def test_one_that_is_frozen_has_a_hash_and_is_not_changed() -> None:
    @frozen
    class Point:
        x: int
        y: int = 0

    assert len({Point(1), Point(1, 0), Point(1, 2)}) == 2
    point = Point(1)
    with pytest.raises(FrozenInstanceError, match="change Point: x is fixed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del point.x
    with pytest.raises(FrozenInstanceError):
        point.z = 2  # type: ignore[attr-defined]
    assert point == Point(1)


def test_one_that_can_be_changed_has_no_hash() -> None:
    @mutable
    class Point:
        x: int

    point = Point(1)
    point.x = 2
    assert point == Point(2)
    with pytest.raises(TypeError, match="unhashable"):
        hash(point)


def test_none_of_them_has_text_compiled_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what they are for."""

    def refuse(text: str, *_args: object) -> None:
        if text.count("def ") > 1:  # 3.13 makes a function of none of them too
            raise AssertionError("compiled")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.exec", refuse)
        with pytest.raises(AssertionError, match="compiled"):
            made_by(dataclass(frozen=True))
        made_by(frozen)
        made_by(mutable)
