"""A container as bytes of an answer: what the message of the same record has, always of the row."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.grpc import containerbytes
from lighter.daemon.grpc.containerbytes import fill, parts
from lighter.daemon.grpc.pb import containers_pb2 as pb
from lighter.daemon.metadata.containers import Stored
from lighter.proto.names import BROKEN_LABEL

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ANYS = st.tuples(WORDS, st.binary(max_size=20).map(lambda v: base64.b64encode(v).decode())).map(
    list
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "spec_type": WORDS,
        "sandbox": WORDS,
        "runtime_options": ANYS,
        "extensions": st.dictionaries(WORDS, ANYS, max_size=2),
        "terminal": st.booleans(),
    },
)
TIMES = st.integers(0, 1 << 62)
ROWS = st.builds(
    Stored,
    *[WORDS] * 6,
    labels=st.dictionaries(WORDS, WORDS, max_size=3).map(json.dumps),
    options=OPTIONS.map(json.dumps),
    created_at=TIMES,
    updated_at=TIMES,
    # Lengths on both sides of where one of the lengths before it takes a byte more.
    spec=st.sampled_from((0, 1, 60, 100, 127, 128, 5000, 16383, 16384, 70000)).map(b"s".__mul__),
)


def message(row: Stored) -> Any:
    made = pb.Container()
    fill(made, row.read())
    return made


@given(st.lists(ROWS, max_size=4))
def test_the_bytes_are_those_of_the_message(rows: list[Stored]) -> None:
    for row in rows:
        assert pb.GetContainerResponse.FromString(b"".join(parts(row))).container == message(row)
        streamed = pb.ListContainerMessage.FromString(b"".join(parts(row)))
        assert streamed.container == message(row)
    joined = b"".join(part for row in rows for part in parts(row))
    listed = pb.ListContainersResponse.FromString(joined).containers
    assert list(listed) == [message(row) for row in rows]


PLAIN = Stored("n", "c", "i", "r", "s", "k", '{"a": "b"}', '{"sandbox": "x"}', 1, 2, b"{}")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "d"},
        {"image": "j"},
        {"runtime": "q"},
        {"snapshotter": "t"},
        {"snapshot_key": "l"},
        {"labels": '{"a": "c"}'},
        {"options": "{}"},
        {"created_at": 3},
        {"updated_at": 3},
        {"spec": b"[]"},
        {"spec": b"longer"},
    ],
)
def test_nothing_of_a_row_that_has_changed_is_remembered(change: dict[str, Any]) -> None:
    """By whomever it was changed, and whether or not its time was."""
    before = b"".join(parts(PLAIN))
    changed = PLAIN._replace(**change)
    found = pb.GetContainerResponse.FromString(b"".join(parts(changed))).container
    assert found == message(changed)
    assert b"".join(parts(PLAIN)) == before


@pytest.mark.parametrize("damaged", ["{", "[]", b"\xff\x00", None, 5])
def test_a_damaged_row_is_answered_as_such(damaged: Any) -> None:
    row = PLAIN._replace(labels=damaged, options=damaged)
    found = pb.GetContainerResponse.FromString(b"".join(parts(row))).container
    assert dict(found.labels) == {BROKEN_LABEL: "labels,options"}


def test_what_is_remembered_is_bounded() -> None:
    remembered = containerbytes._before_spec
    parts(PLAIN)
    hits = remembered.cache_info().hits
    parts(PLAIN._replace(spec=b"[]"))  # as long as the one before
    assert remembered.cache_info().hits == hits + 1
    size = remembered.cache_info().currsize
    parts(PLAIN._replace(labels=json.dumps({"a": "x" * 3000})))
    parts(PLAIN._replace(options=json.dumps({"sandbox": "x" * 3000})))
    assert remembered.cache_info().currsize == size
    for number in range(containerbytes._REMEMBERED + 10):
        parts(PLAIN._replace(id=f"c{number}"))
    assert remembered.cache_info().currsize == containerbytes._REMEMBERED
