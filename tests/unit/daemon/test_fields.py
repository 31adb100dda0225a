"""daemon/rpc/fields: any body gives typed values or InvalidArgument that names the field."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.rpc.fields import Fields
from lighter.proto.errors import InvalidArgument


def fields(**body: Any) -> Fields:
    return Fields("x.y", body)


def test_missing_and_null_fields_are_the_default() -> None:
    for given_ in (fields(), fields(a=None)):
        assert given_.text("a") == "" and given_.text("a", "d") == "d"
        assert given_.text_or_none("a") is None and given_.name_or_none("a") is None
        assert given_.flag("a") is False and given_.flag("a", True) is True
        assert given_.integer("a", 7) == 7 and given_.integer_or_none("a") is None
        assert given_.seconds("a", 1.5) == 1.5
        assert given_.texts("a") == () and given_.texts_or_none("a") is None
        assert given_.labels("a") == {} and given_.mapping("a") == {} and given_.mappings("a") == ()


def test_an_empty_name_is_a_name_and_an_empty_text_is_none() -> None:
    assert fields(a="").name_or_none("a") == ""
    assert fields(a="").text_or_none("a") is None


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("text", 1),
        ("text", b"x"),
        ("text", "a\0b"),
        ("needed", ""),
        ("flag", 1),
        ("flag", "true"),
        ("integer", "1"),
        ("integer", True),
        ("integer", 1.0),
        ("integer", 1 << 63),
        ("integer", -(1 << 63) - 1),
        ("texts", "abc"),
        ("texts", ["a", 1]),
        ("texts", ["a\0"]),
        ("labels", {"a": 1}),
        ("labels", {b"a": "1"}),
        ("labels", {"a": "\0"}),
        ("labels", []),
        ("mapping", []),
        ("mappings", {}),
        ("mappings", ["a"]),
        ("id", ""),
        ("id", ".."),
        ("id", "a/b"),
        ("id", "a" * 77),
        ("id", "ü"),
        ("id", "a\n"),
        ("id", "-a"),
        ("id", 5),
    ],
)
def test_what_does_not_fit_is_refused_by_name(method: str, value: Any) -> None:
    with pytest.raises(InvalidArgument):
        getattr(fields(a=value), method)("a")


@pytest.mark.parametrize("value", [-1, -0.1, math.nan, math.inf, "1", True])
def test_a_time_is_a_time(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="a is"):
        fields(a=value).seconds("a", 1.0)


def test_an_exec_id_may_be_empty_and_nothing_else_unusual() -> None:
    assert fields(exec_id="").exec_id() == "" == fields().exec_id()
    assert fields(exec_id="e-1").exec_id() == "e-1"
    with pytest.raises(InvalidArgument, match="check exec id"):
        fields(exec_id="../x").exec_id()


_ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=8,
)
_METHODS = (
    *("text", "needed", "text_or_none", "name_or_none", "flag", "integer", "integer_or_none"),
    *("texts", "texts_or_none", "labels", "mapping", "mappings", "id"),
)


@given(_ANY, st.sampled_from(_METHODS))
def test_whatever_comes_is_read_or_refused(value: Any, method: str) -> None:
    try:
        getattr(Fields("x.y", {"a": value}), method)("a")
    except InvalidArgument as err:
        assert err.message
