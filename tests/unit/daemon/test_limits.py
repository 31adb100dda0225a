"""daemon/limits: the floor, the raised soft limit, and when new work is refused."""

import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from lighter.daemon.limits import (
    FLOOR,
    LEAST,
    OWN,
    PARTS,
    REFUSE_AT,
    SHARES,
    TASKS,
    UNLIMITED,
    DescriptorBudget,
    Places,
    Share,
)
from lighter.proto.errors import ResourceExhausted

RAISE = "from lighter.daemon.limits import *; raise_descriptor_limit(); print(descriptor_limit())"


def with_limits(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    """Raise the limit in a process that starts with these."""
    return subprocess.run(
        [sys.executable, "-I", "-c", RAISE],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    """F58: all that may be had."""
    assert with_limits(256, FLOOR).stdout == f"{FLOOR}\n"


def test_below_the_floor_the_start_is_refused() -> None:
    """F58: too few to serve anybody."""
    done = with_limits(256, FLOOR - 1)
    assert done.returncode == 1
    assert f"RLIMIT_NOFILE allows {FLOOR - 1} file descriptors" in done.stderr


@pytest.mark.root
def test_a_process_that_leaves_no_core_is_not_dumpable() -> None:
    """Wherever cores go on this host: whether one was left can be seen on few."""
    shown = "ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)"  # PR_GET_DUMPABLE
    text = f"import ctypes; from lighter.daemon.limits import *; print({shown}); leave_no_core()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{text}; print({shown})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n0\n"


def test_new_work_is_refused_at_four_fifths_of_the_limit_as_it_is_then() -> None:
    """F58: the rest is for what runs."""
    limit = 100_000
    budget = DescriptorBudget(lambda: limit)
    assert budget.has_room()
    used = budget.used
    limit = int(used / REFUSE_AT) - 1
    assert not budget.has_room()


def test_what_is_used_is_what_is_open() -> None:
    budget = DescriptorBudget()
    before = budget.used
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    try:
        assert budget.used == before + 10
    finally:
        for fd in fds:
            os.close(fd)
    assert budget.used == before


def test_unlimited_is_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (-1, -1))
    assert DescriptorBudget().has_room()


@pytest.mark.parametrize("limit", [FLOOR, 20_000, UNLIMITED])
def test_f58_all_shares_together_are_no_more_than_there_is(limit: int) -> None:
    assert sum(share.places(limit) * share.each for share in SHARES) <= limit
    assert all(share.places(limit) > LEAST for share in SHARES)
    assert OWN.places(limit) >= limit // 8, "what nobody can ask for is kept back"


def test_f58_no_part_is_given_twice() -> None:
    assert sum(share.parts for share in SHARES) == PARTS


def test_the_page_of_shares_says_what_they_are() -> None:
    text = (Path(__file__).parents[3] / "docs/architecture.md").read_text()
    for share in SHARES:
        shown = [f"{share.places(limit)}" for limit in (FLOOR, 20_000, UNLIMITED)]
        assert f"| {share.parts} | {share.each} | {' | '.join(shown)} |" in text, share


def test_places_are_those_of_a_share_and_come_back() -> None:
    allowed = 100 * PARTS
    places = Places(Share(1, each=10), limit=lambda: allowed)
    with ExitStack() as taken:
        for _ in range(10):
            taken.enter_context(places.take("read"))
        with pytest.raises(ResourceExhausted, match=r"^read: 10 are under way already"):
            taken.enter_context(places.take("read"))
    allowed = 90 * PARTS
    with ExitStack() as taken:
        for _ in range(9):
            taken.enter_context(places.take("read"))
        with pytest.raises(ResourceExhausted, match=r"^write: 9 are"), places.take("write"):
            raise AssertionError("a tenth place of nine was given")
    with places.take("write"):
        pass


def test_a_budget_says_how_many_tasks_there_may_be() -> None:
    assert DescriptorBudget(lambda: FLOOR).most_tasks() == TASKS.places(FLOOR)
