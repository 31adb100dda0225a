"""daemon/tasks/processes: what a dead shim has left in its session is ended, and nobody else."""

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from lighter.daemon.spawning.placement import is_place_of_shims, place_by_hand, remove_empty
from lighter.daemon.tasks.processes import end_session
from tests.harness import await_that, kill_by_pidfd
from tests.lives import process_state

pytestmark = pytest.mark.root


@pytest.fixture
def instance() -> Iterator[str]:
    name = os.urandom(4).hex()
    yield name
    remove_empty(name)


@contextlib.contextmanager
def session(place: str = "", *, leader_stays: bool = False) -> Iterator[tuple[int, int]]:
    """(leader, member) of a session, born where shims of the instance `place` are."""
    script = f"sleep 1000 >/dev/null & echo $!; {'wait' if leader_stays else ''}"
    with subprocess.Popen(
        ["sh", "-c", f"read -r _; {script}"],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as leader:
        assert leader.stdin is not None and leader.stdout is not None
        if place:
            place_by_hand(place, leader.pid)
        leader.stdin.write(b"\n")
        leader.stdin.flush()
        member = int(leader.stdout.readline())
        try:
            if not leader_stays:
                leader.wait()
            yield leader.pid, member
        finally:
            kill_by_pidfd(member)


def lives_on(pid: int) -> bool:
    """Whether it does for a while, which one that was sent SIGKILL does not."""
    pidfd = os.pidfd_open(pid)
    try:
        return not select.select([pidfd], [], [], 1)[0]
    finally:
        os.close(pidfd)


def test_f45_a_session_that_came_by_a_dead_shims_pid_is_left_alone(instance: str) -> None:
    """A daemon has forked away from its session's leader: that the pid is free says nothing."""
    with session() as (leader, stranger):
        end_session(leader, instance)
        assert lives_on(stranger)


def test_what_a_dead_shim_has_left_is_ended(instance: str) -> None:
    with session(instance) as (leader, left):
        end_session(leader, instance)
        await_that(lambda: process_state(left) in ("", "Z"), 20, "it is ended")


def test_the_session_of_one_that_lives_is_another(instance: str) -> None:
    with session(instance, leader_stays=True) as (leader, member):
        end_session(leader, instance)
        assert lives_on(member)


@pytest.mark.parametrize(
    ("cgroup", "is_theirs"),
    [
        ("/lighter-shims/0badcafe", True),
        ("/outer/lighter-shims/0badcafe", True),
        ("/lighter.slice/lighter-shims-0badcafe-7-2.scope", True),
        ("/lighter-shims/0badcafe0", False),
        ("/lighter.slice/lighter-shims-0badcaf-7.scope", False),
        ("/lighter/0badcafe/default/c", False),
        ("/", False),
    ],
)
def test_where_shims_are_born(cgroup: str, is_theirs: bool) -> None:
    assert is_place_of_shims(cgroup, "0badcafe") is is_theirs
