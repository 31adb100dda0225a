"""The namespaces of other containers: of the process that is looked up, and of no other."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from lighter.daemon.containers.joining import Joins
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container
from lighter.proto.errors import FailedPrecondition

WEB = Container(
    *("default", "web", "", "", "", ""),
    b'{"linux": {"namespaces": [{"type": "ipc"}]}}',
    {},
    {"joins": {"ipc": "other"}},
    0,
    0,
)


@pytest.fixture
def other() -> Iterator[Entry]:
    """A task whose shim this process is."""
    with subprocess.Popen(["sleep", "1000"]) as init:
        entry = Entry("default", "other", "0" * 16, "running", "", "", 0, pid=init.pid)
        entry.shim_pid, entry.pidfd = os.getpid(), os.pidfd_open(os.getpid())
        yield entry
        os.close(entry.pidfd)
        init.kill()


def test_a_number_that_came_round_is_not_joined(other: Entry) -> None:
    with closing(Joins(lambda *_of: other)) as joins:
        assert f"/proc/{other.pid}/ns/ipc" in joins.joined(WEB).spec.decode()
        joins.check(os.getpid())
    other.shim_pid = 1
    with (
        closing(Joins(lambda *_of: other)) as joins,
        pytest.raises(FailedPrecondition, match="is gone"),
    ):
        joins.joined(WEB)
