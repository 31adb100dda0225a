"""Matching answers to calls: nobody waits for ever, and nobody gets another's answer."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lighter.proto.calls import MAX_OUTSTANDING, PendingCalls
from lighter.proto.errors import Unavailable


def test_an_answer_finds_its_call_once() -> None:
    calls: PendingCalls[str] = PendingCalls()
    calls.open(1, 7, "slot", "list tasks")
    assert calls.get(1, 7) == "slot"
    assert calls.close(1, 7) == "slot"
    assert calls.close(1, 7) is None
    assert calls.dropped == 1


def test_an_answer_of_another_generation_is_dropped() -> None:
    calls: PendingCalls[str] = PendingCalls()
    calls.open(2, 7, "slot", "list tasks")
    assert calls.close(1, 7) is None
    assert calls.get(3, 7) is None
    assert (len(calls), calls.dropped) == (1, 2)


def test_one_call_more_than_the_limit_is_refused_at_once() -> None:
    calls: PendingCalls[int] = PendingCalls()
    for ident in range(MAX_OUTSTANDING):
        calls.open(1, ident, ident, "kill web")
    with pytest.raises(Unavailable, match="kill web: 16 calls"):
        calls.open(1, MAX_OUTSTANDING, 0, "kill web")
    calls.close(1, 0)
    calls.open(1, MAX_OUTSTANDING, 0, "kill web")


def test_a_late_answer_to_a_forgotten_call_is_dropped() -> None:
    calls: PendingCalls[int] = PendingCalls()
    calls.open(1, 1, 5, "wait web")
    calls.forget(1, 1)
    assert calls.close(1, 1) is None


def test_when_the_peer_is_gone_every_caller_is_handed_out() -> None:
    calls: PendingCalls[int] = PendingCalls()
    for ident in range(5):
        calls.open(1, ident, ident, "wait web")
    assert sorted(calls.drop_all()) == list(range(5))
    assert len(calls) == 0
    assert calls.drop_all() == []


class AgainstADict(RuleBasedStateMachine):
    """Any order of calls and answers behaves as a plain dict with a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: PendingCalls[int] = PendingCalls(limit=4)
        self.model: dict[tuple[int, int], int] = {}
        self.strangers = 0

    @rule(generation=st.integers(1, 2), ident=st.integers(0, 5))
    def ask(self, generation: int, ident: int) -> None:
        if len(self.model) < 4:
            self.calls.open(generation, ident, ident, "x")
            self.model[generation, ident] = ident
        else:
            with pytest.raises(Unavailable):
                self.calls.open(generation, ident, ident, "x")

    @rule(generation=st.integers(1, 2), ident=st.integers(0, 5))
    def answer(self, generation: int, ident: int) -> None:
        expected = self.model.pop((generation, ident), None)
        assert self.calls.close(generation, ident) == expected
        self.strangers += expected is None

    @invariant()
    def same(self) -> None:
        assert len(self.calls) == len(self.model)
        assert self.calls.dropped == self.strangers


TestAgainstADict = AgainstADict.TestCase
