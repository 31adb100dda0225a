"""Where an instance's things are, and how long a socket's path may be."""

import hashlib
import socket
from pathlib import Path

import pytest

from lighter.proto.errors import InvalidArgument
from lighter.proto.names import MAX_NAME
from lighter.proto.paths import Root, State, cgroup_path, shims_cgroup
from lighter.proto.socketpath import MAX_SOCKET_PATH, check_socket_path


def test_two_roots_are_two_instances_however_they_are_spelled() -> None:
    assert Root("/a/r").instance != Root("/b/r").instance
    assert Root("/a/../a/r/").instance == Root("/a/r").instance
    assert len(Root("/a/r").instance) == 8
    assert int(Root("/a/r").instance, 16) >= 0
    # Another release finds by it what this one has made.
    assert Root("/x").instance == hashlib.sha256(b"/x").hexdigest()[:8] == "b3d1db31"


def test_everything_lies_below_its_directory() -> None:
    root, state = Root("/var/lib/lighter"), State("/run/lighter")
    below_root = (
        root.lock,
        root.database,
        root.content,
        root.snapshots,
        root.exit_record("ns", "id"),
        root.logs("ns", "id"),
    )
    below_state = (
        state.lock,
        state.client_socket,
        state.shims_socket,
        state.next_socket,
        state.pid_file,
        state.runc_root("ns"),
        state.tasks,
        state.task("ns", "id"),
        state.short_sockets,
    )
    assert all(path.startswith("/var/lib/lighter/") for path in below_root)
    assert all(path.startswith("/run/lighter/") for path in below_state)
    assert len({*below_root, *below_state}) == len(below_root) + len(below_state)


def test_containers_of_two_instances_never_share_a_cgroup() -> None:
    assert cgroup_path("0badcafe", "ns", "id") == "/lighter/0badcafe/ns/id"
    assert not shims_cgroup("0badcafe").startswith("/lighter/")


def test_the_limit_is_the_kernels(tmp_path: Path) -> None:
    longest = "/tmp/" + "x" * (MAX_SOCKET_PATH - 5)
    assert check_socket_path(longest) == longest
    with socket.socket(socket.AF_UNIX) as probe:
        with pytest.raises(OSError, match=r"No such file|refused"):
            probe.connect(longest)  # a possible path, nobody is there
        with pytest.raises(OSError, match="too long"):
            probe.connect(longest + "xx")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/" + "x" * MAX_SOCKET_PATH, "108 bytes"),
        ("/" + "é" * 60, "121 bytes"),
        ("@abstract", "not absolute"),
        ("\0abstract", "not absolute"),
        ("relative.sock", "not absolute"),
        ("", "not absolute"),
    ],
)
def test_sec_64_f77_other_paths_are_refused(path: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        check_socket_path(path)


def test_f77_the_longest_names_still_have_their_sockets() -> None:
    state = State("/run/lighter")
    assert len(state.task("n" * MAX_NAME, "i" * MAX_NAME)) > MAX_SOCKET_PATH
    for path in (state.client_socket, state.shims_socket, f"{state.short_sockets}/01234567"):
        check_socket_path(path)
