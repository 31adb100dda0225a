"""Names that people choose (F77): containerd's alphabet and limits, safe as a path component."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.proto.errors import InvalidArgument
from lighter.proto.names import MAX_LABEL_BYTES, MAX_NAME, check_labels, check_name


@pytest.mark.parametrize("name", ["a", "0", "web-1", "a.b_c-d", "A" * MAX_NAME, "moby", "k8s.io"])
def test_f77_valid_names_pass_unchanged(name: str) -> None:
    assert check_name(name, "container") == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "check container id: it is empty"),
        ("a" * (MAX_NAME + 1), "77 characters, at most 76"),
        ("-x", "starts with a letter or digit"),
        (".", "starts with"),
        ("..", "starts with"),
        ("_x", "starts with"),
        ("a b", "only letters"),
        ("a\n", "only letters"),
        ("a/b", "only letters"),
        ("a\0", "only letters"),
        ("é", "only letters"),
        ("a٣", "only letters"),
        (None, "expected text, got NoneType"),
        (b"x", "expected text, got bytes"),
        (7, "expected text, got int"),
    ],
)
def test_f77_others_are_refused_with_the_rule(name: object, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        check_name(name, "container")


@given(st.text(max_size=90))
def test_a_name_that_passes_is_one_path_component(name: str) -> None:
    try:
        check_name(name, "container")
    except InvalidArgument:
        return
    assert os.path.normpath(f"/top/{name}") == f"/top/{name}"
    assert os.path.basename(f"/top/{name}") == name
    assert name.isascii()
    assert not name.startswith("-")


def test_f77_a_label_fits_to_the_byte() -> None:
    key = "key"
    check_labels({key: "v" * (MAX_LABEL_BYTES - len(key))})
    with pytest.raises(InvalidArgument, match="4097 bytes, at most 4096"):
        check_labels({key: "v" * (MAX_LABEL_BYTES - len(key) + 1)})


def test_f77_a_label_is_measured_in_bytes_not_characters() -> None:
    with pytest.raises(InvalidArgument):
        check_labels({"k": "é" * (MAX_LABEL_BYTES // 2)})


def test_a_label_has_a_key() -> None:
    with pytest.raises(InvalidArgument, match="the key is empty"):
        check_labels({"": "v"})
