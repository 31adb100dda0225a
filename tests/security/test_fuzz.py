"""Damaged input is an error that a caller expects, or is read: never another exception.

F73, F78 and SEC-20 for inputs nobody thought of. What has failed stays in the corpus.
"""

import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.security import fuzzing
from tests.security.fuzzing import TARGETS, fails, keep, mutations

IN_CI = 300
SOAK_S = 3600 / len(TARGETS)


def run(target: str, seeds: "itertools.count[int] | range", until: float) -> int:
    """How many inputs were tried. Raises AssertionError with the seed of one that fails."""
    tried = 0
    for seed, data in mutations(target, iter(seeds)):
        if error := fails(target, data):
            path = keep(target, data)
            raise AssertionError(f"seed {seed}, kept as {path}: {error!r}") from error
        tried += 1
        if time.monotonic() > until:
            break
    return tried


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_read(target: str) -> None:
    for path in sorted((fuzzing.CORPUS / target).iterdir()):
        error = fails(target, path.read_bytes())
        assert error is None, f"{path}: {error!r}"


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_is_an_expected_error(target: str) -> None:
    """F73, F78, SEC-20: the same inputs in every run."""
    assert run(target, range(IN_CI), float("inf")) == IN_CI


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("target", TARGETS)
def test_an_hour_of_damaged_input(
    target: str, record_property: Callable[[str, object], None]
) -> None:
    """Others in every run."""
    first = random.randrange(1 << 40)
    record_property("first seed", first)
    tried = run(target, itertools.count(first), time.monotonic() + SOAK_S)
    record_property("inputs", tried)


def test_most_mutations_are_of_a_kind_that_gets_far() -> None:
    """They are no noise: a part is still read, and so what is behind the parser is tried too."""
    for target in ("reference", "wire", "config"):
        read = 0
        for _, data in mutations(target, iter(range(IN_CI))):
            try:
                TARGETS[target](data)
                read += 1
            except Exception:
                pass
        assert read > IN_CI / 50, (target, read)


def test_a_failing_input_is_kept_and_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses_sevens(data: bytes) -> None:
        if b"7" in data:
            raise KeyError("7")

    (tmp_path / "sevens").mkdir()
    (tmp_path / "sevens" / "seed").write_bytes(b"6" * 40)
    monkeypatch.setattr(fuzzing, "CORPUS", tmp_path)
    monkeypatch.setitem(TARGETS, "sevens", refuses_sevens)
    with pytest.raises(AssertionError, match=r"kept as .*/sevens/found-"):
        run("sevens", itertools.count(), float("inf"))
    (found,) = (tmp_path / "sevens").glob("found-*")
    assert fails("sevens", found.read_bytes())
