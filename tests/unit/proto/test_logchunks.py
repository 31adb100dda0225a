"""The log's chunk heads and file names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.proto.logchunks import HEAD, MAX_CHUNK, file_name, file_number, parse_head


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 3), st.integers(0, MAX_CHUNK))
def test_a_head_survives_the_trip(timestamp: int, stream: int, length: int) -> None:
    head = HEAD.pack(timestamp, stream, length)
    assert len(head) == 16
    assert parse_head(head + b"data") == (timestamp, stream, length)
    assert parse_head(head[:-1]) is None


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD.pack(1, 0, 10),
        HEAD.pack(1, 4, 10),
        HEAD.pack(1, 1, MAX_CHUNK + 1),
        bytes(16),
        b"\xff" * 16,
    ],
)
def test_what_is_no_head_is_not_taken_for_one(head: bytes) -> None:
    assert parse_head(head) is None


@given(st.integers(0, 9_999_999_999))
def test_file_names_sort_as_their_numbers(number: int) -> None:
    assert file_number(file_name(number)) == number
    assert file_name(number) <= file_name(9_999_999_999)


@pytest.mark.parametrize(
    "name", ["1.log", "0000000001.txt", "0000000001", "٠٠٠٠٠٠٠٠٠١.log", "-000000001.log", ".log"]
)
def test_other_files_in_the_directory_have_no_number(name: str) -> None:
    assert file_number(name) is None
