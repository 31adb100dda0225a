"""Where a container is among the cgroups, by what its client wrote."""

import json

import pytest

from lighter.daemon.tasks.calling import (
    REFUSED,
    check_alone,
    from_record,
    place,
    systemd_cgroup,
    to_record,
)
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.types import Container, RuntimeOptions
from lighter.proto.errors import FailedPrecondition, InvalidArgument
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
        ("some/place", f"{OWN}/some/place"),
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


@pytest.mark.parametrize("given", ["/", "//", "/a/../..", "/a/../b", "../x", "a/../../../x"])
def test_no_place(given: str) -> None:
    spec = json.dumps({"linux": {"cgroupsPath": given}}).encode()
    with pytest.raises(InvalidArgument, match="cgroup"):
        place(ROOT, _container(spec), systemd=False)


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
    ],
)
def test_systemd(given: str, path: str) -> None:
    assert systemd_cgroup(given, "c") == path


@pytest.mark.parametrize("given", ["/a/b", "a:b", "a.slice:b:", "a:b:c", "a.slice:b:../c"])
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
            check_alone(path, "c", [other])
    else:
        check_alone(path, "c", [other])


def test_options_as_they_are_recorded() -> None:
    options = RuntimeOptions(binary_name="crun", io_uid=7)
    assert to_record(options) == {"binary_name": "crun", "io_uid": 7}
    assert from_record({**to_record(options), "of_a_later_release": 1}) == options
    with pytest.raises(InvalidArgument, match="why"):
        from_record({REFUSED: "why"})
