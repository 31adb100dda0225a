"""Where a container is among the cgroups, by what its client wrote."""

import json
from pathlib import Path

import pytest

from lighter.daemon.tasks.calling import (
    REFUSED,
    check_alone,
    check_apart,
    from_record,
    make_root,
    place,
    systemd_cgroup,
    to_record,
)
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container, RuntimeOptions
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from lighter.proto.paths import Root

ROOT = Root("/var/lib/lighter")
OWN = f"/lighter/{ROOT.instance}"


def _container(spec: bytes) -> Container:
    return Container("ns", "c", "", "", "", "", spec, {}, {}, 0, 0)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/ns/c", "/ns/c"),
        ("//docker/x/", "/docker/x"),
        ("", f"{OWN}/ns/c"),
        (None, f"{OWN}/ns/c"),
        ("some/place", f"{OWN}/ns/some/place"),
        ("ns", f"{OWN}/ns/ns"),
    ],
)
def test_place(given: str | None, path: str) -> None:
    spec = json.dumps({"linux": {"cgroupsPath": given} if given is not None else {}}).encode()
    found, written = place(ROOT, _container(spec), systemd=False)
    assert found == path
    if given and given.startswith("/"):
        assert written is spec, "it is passed on as it is"
    else:
        assert json.loads(written)["linux"]["cgroupsPath"] == path


@pytest.mark.parametrize(
    "given", ["/", "//", "/a/../..", "/a/../b", "../x", "a/../../../x", ".", "x/.."]
)
def test_no_place(given: str) -> None:
    spec = json.dumps({"linux": {"cgroupsPath": given}}).encode()
    with pytest.raises(InvalidArgument, match="cgroup"):
        place(ROOT, _container(spec), systemd=False)


@pytest.mark.parametrize(
    "spec",
    [
        b'{"linux": {"cgroupsPath": "/a", "CgroupsPath": "/system.slice/ssh.service"}}',
        b'{"linux": {"cgroupsPath": "/a"}, "Linux": {"cgroupsPath": "/b"}}',
    ],
)
def test_no_spec_says_its_cgroup_twice(spec: bytes) -> None:
    """runc takes the last of names that differ in case alone."""
    with pytest.raises(InvalidArgument, match="twice"):
        place(ROOT, _container(spec), systemd=False)


@pytest.mark.parametrize("systemd", [False, True])
@pytest.mark.parametrize(
    "given", ["/a\0b", "/a\ud800", "a\udfff", "x.slice:a\ud800:b", "x.slice:a:\0"]
)
def test_a_place_that_no_directory_can_have(given: str, systemd: bool) -> None:
    spec = json.dumps({"linux": {"cgroupsPath": given}}).encode()
    with pytest.raises(InvalidArgument, match="no name of a place"):
        place(ROOT, _container(spec), systemd)


@pytest.mark.parametrize("spec", [b"", b"no json", b"[]", b'{"linux": 1}'])
def test_no_spec(spec: bytes) -> None:
    with pytest.raises(InvalidArgument, match="no OCI spec"):
        place(ROOT, _container(spec), systemd=False)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("machine.slice:foo:bar", "/machine.slice/foo-bar.scope"),
        ("a-b-c.slice:docker:x", "/a.slice/a-b.slice/a-b-c.slice/docker-x.scope"),
        (":cri:x", "/system.slice/cri-x.scope"),
        ("-.slice:p:x", "/p-x.scope"),
        ("system.slice:p:x.slice", "/system.slice/x.slice"),
        ("", "/system.slice/runc-c.scope"),
        ("a.slice::x", "/a.slice/-x.scope"),
    ],
)
def test_systemd(given: str, path: str) -> None:
    assert systemd_cgroup(given, "c") == path


@pytest.mark.parametrize(
    "given", ["/a/b", "a:b", "a.slice:b:", "a:b:c", "a.slice:b:../c", "a.slice::.."]
)
def test_no_unit_of_systemd(given: str) -> None:
    with pytest.raises(InvalidArgument):
        systemd_cgroup(given, "c")


@pytest.mark.parametrize(
    ("path", "taken"), [("/a/b", True), ("/a/b/c", True), ("/a", True), ("/a/bc", False)]
)
def test_alone(path: str, taken: bool) -> None:
    other = Entry("ns", "o", "0" * 16, "running", "", "", 0, options={"cgroup": "/a/b"})
    if taken:
        with pytest.raises(FailedPrecondition, match="shared with task o"):
            check_alone(ROOT, path, "c", [other])
    else:
        check_alone(ROOT, path, "c", [other])


def test_alone_among_those_whose_place_is_ours() -> None:
    ours = Entry("ns", "o", "0" * 16, "running", "", "", 0)
    for path in (f"{OWN}/ns/o", f"{OWN}/ns/o/below", f"{OWN}/ns"):
        with pytest.raises(FailedPrecondition, match="shared with task o"):
            check_alone(ROOT, path, "c", [ours])
    for path in (OWN, "/lighter"):
        with pytest.raises(FailedPrecondition, match="above"):
            check_alone(ROOT, path, "c", [])
    check_alone(ROOT, f"{OWN}/ns/other", "c", [ours])


def test_ours_is_made_in_no_clients_place() -> None:
    theirs = Entry("x", "o", "0" * 16, "running", "", "", 0, options={"cgroup": f"{OWN}/ns"})
    with pytest.raises(FailedPrecondition, match="shared with task o"):
        check_apart(ROOT, _container(b"{}"), [theirs])
    elsewhere = Entry("x", "o", "0" * 16, "running", "", "", 0, options={"cgroup": "/x/o"})
    assert check_apart(ROOT, _container(b"{}"), [elsewhere]) == f"{OWN}/ns/c"


def test_a_root_that_has_such_a_container_is_left_alone(tmp_path: Path) -> None:
    make_root(f"{tmp_path}/runc/ns", "c")
    (tmp_path / "runc/ns/c").mkdir()
    with pytest.raises(AlreadyExists):
        make_root(f"{tmp_path}/runc/ns", "c")


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a\0b"])
def test_no_root(path: str) -> None:
    with pytest.raises(InvalidArgument, match="an absolute path"):
        make_root(path, "c")


def test_options_as_they_are_recorded() -> None:
    options = RuntimeOptions(binary_name="crun", io_uid=7)
    assert to_record(options) == {"binary_name": "crun", "io_uid": 7}
    assert from_record({**to_record(options), "of_a_later_release": 1}) == options
    with pytest.raises(InvalidArgument, match="why"):
        from_record({REFUSED: "why"})
