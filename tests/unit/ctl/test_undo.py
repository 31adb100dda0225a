"""What is taken back when a block ends early."""

import pytest

from lighter.ctl.undo import Undo


def test_the_last_is_taken_back_first_and_nothing_of_what_is_kept() -> None:
    done: list[str] = []
    with Undo() as undo:
        undo.add(lambda: done.append("first"))
        undo.add(lambda: done.append("second"))
    assert done == ["second", "first"]
    with Undo() as undo:
        undo.add(lambda: done.append("third"))
        undo.keep()
    assert len(done) == 2


def test_one_that_fails_keeps_none_from_its_turn() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("undo")

    with pytest.raises(OSError, match="undo"), Undo() as undo:
        undo.add(lambda: done.append("first"))
        undo.add(fail)
        raise ValueError("work")
    assert done == ["first"]
