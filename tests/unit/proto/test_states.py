"""The life cycle tables: every pair is walked, and the adoption table has no hole."""

from itertools import product

import pytest

from lighter.proto import states
from lighter.proto.errors import FailedPrecondition

STATES = (
    states.CREATING,
    states.CREATED,
    states.RUNNING,
    states.PAUSED,
    states.STOPPED,
    states.DELETED,
    states.UNKNOWN,
    states.ADDED,
)
STEPS = (
    "create",
    "fail",
    "start",
    "exec",
    "attach",
    "kill",
    "pause",
    "resume",
    "exit",
    "delete",
    "nonsense",
    "update",
    "checkpoint",
)
TABLES = {"task": states.TASK, "exec": states.EXEC}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("state", "step"), list(product(STATES, STEPS)))
def test_every_pair_is_a_step_or_a_refusal(name: str, state: str, step: str) -> None:
    table = TABLES[name]
    if (state, step) in table:
        assert states.advance(table, state, step, "web") == table[state, step]
    else:
        with pytest.raises(FailedPrecondition, match=f"^{step} web: it is {state}$"):
            states.advance(table, state, step, "web")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_hold_known_words_only(name: str) -> None:
    for (state, step), following in TABLES[name].items():
        assert {state, following} <= set(STATES) - {states.UNKNOWN}
        assert step in STEPS


@pytest.mark.parametrize("name", TABLES)
def test_every_state_but_the_last_can_reach_the_end(name: str) -> None:
    table = TABLES[name]
    ends = {states.DELETED}
    for _ in STATES:
        ends |= {state for (state, _), following in table.items() if following in ends}
    assert {state for state, _ in table} <= ends
    assert not [step for state, step in table if state == states.DELETED]


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (states.STOPPED, "start"),
        (states.STOPPED, "kill"),
        (states.PAUSED, "exec"),
        (states.PAUSED, "pause"),
        (states.RUNNING, "delete"),
        (states.RUNNING, "start"),
        (states.CREATED, "exec"),
    ],
)
def test_what_users_try_and_must_be_refused(state: str, step: str) -> None:
    with pytest.raises(FailedPrecondition):
        states.advance(states.TASK, state, step, "web")


ROWS = (
    states.CREATING,
    states.CREATED,
    states.RUNNING,
    states.PAUSED,
    states.STOPPED,
    states.NONE,
    states.TOMBSTONE,
)
SHIMS = (states.NEVER, states.SILENT, states.HELLO, states.DEAD, states.REBOOT)


@pytest.mark.parametrize(("row", "shim", "record"), list(product(ROWS, SHIMS, (False, True))))
def test_adoption_knows_every_combination(row: str, shim: str, record: bool) -> None:
    step = states.adoption_step(row, shim, record)
    if row == states.TOMBSTONE:  # the only rows whose shim may be killed
        assert step in {"kill", "forget"}
    else:
        assert step != "kill"
    if shim == states.HELLO and row != states.TOMBSTONE:
        assert step.startswith("adopt")
    if shim == states.SILENT and row != states.TOMBSTONE:
        assert step == "wait"  # a timeout is no proof of death
    running = row in {states.CREATED, states.RUNNING, states.PAUSED}
    if running and shim in {states.DEAD, states.NEVER, states.REBOOT}:
        assert step.startswith("settle-")  # no running task vanishes without an exit
        assert (step == "settle-record") == record


def test_adoption_has_no_combination_that_cannot_happen() -> None:
    rows = {states.CREATING, states.LIVE, states.STOPPED, states.NONE, states.TOMBSTONE}
    assert set(states.ADOPTION) == set(product(rows, SHIMS, (False, True)))
