"""What a version says of itself, read without running it."""

from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.metadata.schema import MIGRATIONS
from lighter.proto import codec, compat
from lighter.proto.errors import InvalidArgument
from lighter.proto.release import OWN, checked, order, protocols_of, release_at

TOP = Path(__file__).parents[3]


def test_the_literals_are_what_the_programs_do() -> None:
    assert compat.PROTOCOLS == codec.SUPPORTED == tuple(sorted(codec.SUPPORTED))
    assert len(MIGRATIONS) == compat.SCHEMA, "raise SCHEMA and SCHEMA_NEWEST with a migration"
    assert compat.SCHEMA_NEWEST == compat.SCHEMA + 1


def test_an_installed_version_is_read_as_text(tmp_path: Path) -> None:
    proto = tmp_path / "site/lighter/proto"
    proto.mkdir(parents=True)
    for name in ("version.py", "compat.py"):
        text = (TOP / "proto" / name).read_text()
        (proto / name).write_text(f"{text}\nraise SystemExit('this was run')\n")
    assert release_at(str(tmp_path)) == OWN


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "1 0"},
        {"version": ""},
        {"version": 7},
        {"protocols": ()},
        {"protocols": [0]},
        {"protocols": [1, "2"]},
        {"protocols": "1"},
        {"schema": 0},
        {"schema": "1"},
        {"schema": 3},
        {"schema_newest": None},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    said = {"version": "1.0", "protocols": [1], "schema": 1, "schema_newest": 2, **wrong}
    with pytest.raises(InvalidArgument, match="read version of x: it says"):
        checked(**said, where="x")


@pytest.mark.parametrize("said", [{}, {"protocols": None}, {"protocols": []}, {"protocols": [-1]}])
def test_who_does_not_say_is_of_the_first_release(said: dict[str, Any]) -> None:
    assert protocols_of(said) == (1,)


def test_versions_are_ordered_by_their_numbers() -> None:
    versions = ["0.9.1", "0.10.0", "1.0.0", "0.9"]
    assert sorted(versions, key=order) == ["0.9", "0.9.1", "0.10.0", "1.0.0"]
