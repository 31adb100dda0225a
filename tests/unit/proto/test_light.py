"""Our stand-in for typing.NamedTuple, beside the real one."""

from __future__ import annotations

import typing

import pytest

from lighter.proto import light


class Real(typing.NamedTuple):
    """A pair."""

    left: int
    right: str


if typing.TYPE_CHECKING:
    Ours = Real
else:

    class Ours(light.NamedTuple):
        """A pair."""

        left: int
        right: str


@pytest.mark.parametrize("kind", [Real, Ours])
def test_it_does_what_messages_need(kind: type[Real]) -> None:
    pair = kind(1, right="b")
    assert pair == kind(1, "b") == (1, "b")
    assert (pair.left, pair.right, *pair) == (1, "b", 1, "b")
    assert kind._fields == ("left", "right")
    assert pair._replace(right="c") == (1, "c")
    assert repr(pair) == f"{kind.__name__}(left=1, right='b')"
    assert kind.__doc__ == "A pair." and isinstance(pair, kind)
    match pair:
        case kind(left, right=right):
            assert (left, right) == (1, "b")
    assert not hasattr(pair, "__dict__")


@pytest.mark.parametrize("kind", [Real, Ours])
@pytest.mark.parametrize(
    ("values", "named"), [((1,), {}), ((1, "b", 2), {}), ((1,), {"left": 2}), ((1, "b"), {"x": 1})]
)
def test_it_refuses_other_fields(
    kind: typing.Any, values: tuple[object, ...], named: dict[str, object]
) -> None:
    with pytest.raises(TypeError):
        kind(*values, **named)
