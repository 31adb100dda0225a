"""The tutorial with ctr 1.7: images through Transfer, containers, sandboxes."""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.grpc.newer import run_newer
from tests.grpc.pair import heard
from tests.grpc.space import Space
from tests.grpc.workshop import remove_place
from tests.harness import Lighterd, await_that, settled
from tests.registries import PASSWORD, USER, DebianRegistry

BUSYBOX = images.REFERENCE
BY_TRANSFER = "--local=false"
pytestmark = pytest.mark.skipif(
    shutil.which("apt-get") is None, reason="ctr 1.7 is fetched from Debian"
)


class Newer:
    """ctr 1.7 in a namespace of the test's own."""

    def __init__(self, space: Space) -> None:
        self._address = space.lighterd.grpc_address
        self._namespace = space.namespace

    def __call__(self, *words: str, data: bytes | None = None, code: int = 0) -> str:
        """What it prints, both ways. Raises AssertionError when it ends with another code."""
        done = run_newer(self._address, "-n", self._namespace, *words, data=data)
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == code, f"ctr {' '.join(words)}: {done.returncode}\n{said}"
        return said


@pytest.fixture
def newer(space: Space) -> Iterator[Newer]:
    """Its containers are in a cgroup of the namespace's name, as all of ctr's."""
    place = f"/{space.namespace}"
    space.lighterd.cgroups.add(place)
    yield Newer(space)
    settled(space.lighterd.left_of_containers)
    remove_place(space.lighterd, place)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    with DebianRegistry(tmp_path_factory.mktemp("registry"), htpasswd=True) as registry:
        yield registry


def test_images_come_and_go_by_transfer(newer: Newer, space: Space, tmp_path: Path) -> None:
    said = newer("images", "import", BY_TRANSFER, str(images.busybox_archive()))
    assert "saved" in said and BUSYBOX in said
    newer("images", "tag", BY_TRANSFER, BUSYBOX, "example.com/busybox:tagged")
    newer("images", "tag", BY_TRANSFER, "example.com/none:1", "example.com/x:1", code=1)
    assert "complete (2/2)" in newer("images", "check")
    archive = tmp_path / "image.tar"
    newer("images", "export", BY_TRANSFER, str(archive), BUSYBOX, "example.com/busybox:tagged")
    theirs = tmp_path / "local.tar"
    newer("images", "export", "--local", str(theirs), BUSYBOX, "example.com/busybox:tagged")
    with tarfile.open(archive) as ours, tarfile.open(theirs) as local:
        assert sorted(ours.getnames()) == sorted(local.getnames())
    newer("images", "rm", "--sync", BUSYBOX, "example.com/busybox:tagged")
    assert not space.digests()
    with archive.open("rb") as file:
        newer("images", "import", BY_TRANSFER, "-", data=file.read())
    assert sorted(newer("images", "ls", "-q").split()) == [BUSYBOX, "example.com/busybox:tagged"]
    assert newer("run", "--rm", BUSYBOX, "c", "echo", "hello") == "hello\n"


def test_names_of_an_import(newer: Newer) -> None:
    archive = str(images.busybox_archive())
    newer("images", "import", BY_TRANSFER, "--base-name", "example.com/other", archive, code=1)
    newer("images", "import", BY_TRANSFER, "--base-name", "docker.io/library/busybox", archive)
    newer("images", "import", BY_TRANSFER, "--index-name", "example.com/index:1", archive)
    newer("images", "import", BY_TRANSFER, "--digests", "--base-name", "example.com/x", archive)
    names = newer("images", "ls", "-q").split()
    assert names[:2] == [BUSYBOX, "example.com/index:1"]
    assert names[2].startswith("example.com/x@sha256:") and len(names) == 3


def test_pull_and_push_with_credentials_that_are_asked_back(
    newer: Newer, registry: DebianRegistry
) -> None:
    newer("images", "import", str(images.busybox_archive()))
    name = f"{registry.host}/library/busybox:test"
    newer("images", "tag", BUSYBOX, name)
    right, wrong = ("-u", f"{USER}:{PASSWORD}"), ("-u", f"{USER}:wrong")
    push = ("images", "push", BY_TRANSFER, "--plain-http")
    pull = ("images", "pull", BY_TRANSFER, "--plain-http")
    assert "401" in newer(*push, name, code=1)
    assert "401" in newer(*push, *wrong, name, code=1)
    assert "pushed content" in newer(*push, *right, name)
    newer("images", "rm", "--sync", name, BUSYBOX)
    said = newer(*pull, *wrong, name, code=1)
    assert registry.host in said and PASSWORD not in said
    said = newer(*pull, *right, "--platform", "linux/amd64", name)
    assert "layer (" in said and "complete" in said and "saved" in said
    assert "complete (2/2)" in newer("images", "check")
    newer(*pull, *right, f"{registry.host}/library/none:test", code=1)


def test_containers_and_tasks(newer: Newer) -> None:
    newer("images", "import", str(images.busybox_archive()))
    newer("containers", "create", BUSYBOX, "made")
    assert json.loads(newer("containers", "info", "made"))["Runtime"]["Name"]
    newer("containers", "rm", "made")
    newer("run", "-d", BUSYBOX, "c", "sleep", "600")
    try:
        assert "RUNNING" in newer("tasks", "ls")
        says = ("tasks", "exec", "--exec-id", "1", "c", "echo", "hi")
        assert heard(lambda: newer(*says)) == "hi\n"
        newer("tasks", "pause", "c")
        assert "PAUSED" in newer("tasks", "ls")
        newer("tasks", "resume", "c")
        assert "memory" in newer("tasks", "metrics", "c")
        newer("tasks", "ps", "c")
    finally:
        newer("tasks", "kill", "-s", "KILL", "c")
        await_that(lambda: "STOPPED" in newer("tasks", "ls"), 30, "c is stopped")
        newer("tasks", "delete", "c")
        newer("containers", "delete", "c")


def test_mounts_and_namespaces_of_containers(newer: Newer, tmp_path: Path) -> None:
    newer("images", "import", str(images.busybox_archive()))
    (tmp_path / "file").write_text("of the host\n")
    mount = f"type=bind,src={tmp_path},dst=/host,options=rbind:ro"
    script = "cat /host/file; touch /host/x 2>/dev/null || echo read-only"
    said = newer("run", "--rm", "--mount", mount, BUSYBOX, "c", "sh", "-c", script)
    assert said.startswith("of the host\n") and said.endswith("read-only\n")
    names = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("uts", "ipc")]
    joined = ("--with-ns", "uts:/proc/self/ns/uts")
    script = "readlink /proc/self/ns/uts; readlink /proc/self/ns/ipc"
    uts, ipc = newer("run", "--rm", *joined, BUSYBOX, "c", "sh", "-c", script).split()
    assert uts == names[0] and ipc != names[1]


def test_an_image_is_mounted_and_converted(newer: Newer, tmp_path: Path) -> None:
    newer("images", "import", str(images.busybox_archive()))
    for flags in ((), ("--rw",)):
        newer("images", "mount", *flags, BUSYBOX, str(tmp_path))
        try:
            assert (tmp_path / "bin/sh").exists()
            if flags:
                (tmp_path / "new").write_text("new")
        finally:
            newer("images", "unmount", "--rm", str(tmp_path))
        assert not list(tmp_path.iterdir())
    newer("images", "convert", "--uncompress", "--oci", BUSYBOX, "example.com/plain:1")
    kinds = {line.split()[0]: line.split()[1] for line in newer("images", "ls").splitlines()[1:]}
    assert kinds["example.com/plain:1"].startswith("application/vnd.oci.image.")
    assert newer("run", "--rm", "example.com/plain:1", "c", "echo", "hello") == "hello\n"


def test_namespaces_come_and_go(newer: Newer, space: Space) -> None:
    name = f"{space.namespace}-other"
    newer("namespaces", "create", name, "a=b")
    newer("namespaces", "label", name, "c=d")
    (line,) = (line for line in newer("namespaces", "ls").splitlines() if line.startswith(name))
    assert line.split()[1].split(",") == ["a=b", "c=d"]
    newer("namespaces", "rm", name)
    assert name not in newer("namespaces", "ls", "-q").split()


def test_what_the_server_tells_of_itself(newer: Newer, shared_lighterd: Lighterd) -> None:
    plugins = newer("plugins", "ls")
    for plugin in ("transfer", "streaming", "sandboxes", "sandbox-controllers"):
        assert plugin in plugins
    assert "uuid" in newer("info")
    newer("deprecations", "list")
    assert "Server:" in newer("version")


def test_a_sandbox_is_a_record(newer: Newer, tmp_path: Path) -> None:
    config = tmp_path / "pod.json"
    config.write_text("{}")
    assert newer("sandboxes", "ls").split() == ["ID", "CREATED", "RUNTIME"]
    said = newer("sandboxes", "run", str(config), "pod", code=1)
    assert "no runtime here runs sandboxes" in said
    assert "pod" in newer("sandboxes", "ls")
    assert "deleted" in newer("sandboxes", "rm", "pod")
    assert "pod" not in newer("sandboxes", "ls")
