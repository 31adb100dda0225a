"""What `inspect` shows, where objects of other namespaces are, what a namespace's labels choose."""

import json
from collections.abc import Iterator

import pytest

from tests import images
from tests.harness import Lighterd
from tests.images import REFERENCE


@pytest.fixture
def lighterd(shared: Lighterd) -> Iterator[Lighterd]:
    yield shared
    shared.clear()
    shared.ctl("volume", "prune", "-af", check=True)


def test_inspect_speaks_docker_to_templates(lighterd: Lighterd) -> None:
    lighterd.ctl("run", "-d", "-e", "A=1", "-v", "data:/d:ro", "--label", "tier=web", REFERENCE,
                 "web", "sleep", "1000", check=True)  # fmt: skip

    def shown(template: str, *words: str) -> str:
        return lighterd.ctl("inspect", "-f", template, *words, check=True).stdout.decode()

    with lighterd.client() as client:
        pid = client.call("tasks", "get", id="web")["task"]["pid"]
    assert shown("{{.Name}} {{.State.Status}} {{.State.Pid}}", "web") == f"/web running {pid}\n"
    assert shown('{{index .Config.Labels "tier"}} {{.Config.Image}}', "web") == f"web {REFERENCE}\n"
    assert "A=1" in json.loads(shown("{{json .Config.Env}}", "web"))
    assert shown("{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}", "web") == (
        "volume data /d false\n"
    )
    assert shown("{{.task.pid}} {{.snapshotter}}", "web") == f"{pid} overlayfs\n", "ours too"
    wrong = lighterd.ctl("inspect", "-f", "{{.State.Nothing}}", "web")
    assert wrong.returncode == 1 and b"there is no .Nothing; there are .Status" in wrong.stderr
    lighterd.ctl("kill", "web", check=True)
    with lighterd.client() as client:
        client.call("tasks", "wait", id="web", exec_id="")
    assert shown("{{.State.Status}} {{.State.ExitCode}}", "web") == "exited 137\n"


def test_inspect_finds_other_things_too(lighterd: Lighterd) -> None:
    lighterd.ctl("volume", "create", "data", check=True)
    shape = ("-f", "{{.Mountpoint}}")
    found = lighterd.ctl("inspect", *shape, "data", check=True).stdout.decode().strip()
    assert found == str(lighterd.root / "volumes/default/data/_data")
    image = lighterd.ctl("inspect", "-f", "{{json .Config.Cmd}}", REFERENCE, check=True)
    assert image.stdout == b'["sh"]\n'
    assert lighterd.ctl("inspect", "--type", "container", "data").returncode == 1
    assert lighterd.ctl("inspect", "--type", "volume", "data", check=True).stdout.startswith(b"{")
    missing = lighterd.ctl("inspect", "nothing")
    assert missing.returncode == 1 and missing.stderr.count(b"\n") == 1


def test_what_is_in_another_namespace_is_found_there(lighterd: Lighterd) -> None:
    lighterd.ctl("run", "-d", REFERENCE, "web", "sleep", "1000", check=True)
    lighterd.ctl("volume", "create", "data", check=True)
    for words in (
        *(
            ("inspect", "--type", "container", "web"),
            ("kill", "web"),
            ("logs", "web"),
            ("top", "web"),
        ),
        *(("tasks", "ps", "web"), ("volume", "rm", "data"), ("images", "inspect", REFERENCE)),
        *(
            ("cp", "web:/etc", "-"),
            ("stats", "--no-stream", "web"),
            ("run", REFERENCE, "x", "true"),
        ),
    ):
        pull = ("--pull", "never") if words[0] == "run" else ()
        refused = lighterd.ctl("-n", "elsewhere", *words[:1], *pull, *words[1:])
        assert b"(ctl -n default \xe2\x80\xa6)" in refused.stderr, (words, refused.stderr)


def test_a_namespaces_labels_choose_for_its_images(lighterd: Lighterd) -> None:
    label = "containerd.io/defaults/snapshotter=native"
    lighterd.ctl("namespaces", "create", "copies", label, check=True)
    own = ("-n", "copies")
    lighterd.ctl(*own, "images", "import", str(images.busybox_archive()), check=True)
    listed = lighterd.ctl(*own, "snapshots", "--snapshotter", "native", "ls", check=True).stdout
    assert b"Committed" in listed
    assert b"Committed" not in lighterd.ctl(*own, "snapshots", "ls", check=True).stdout
    lighterd.ctl(*own, "rmi", "-f", REFERENCE, check=True)
    lighterd.ctl("namespaces", "rm", "copies", check=True)


def test_a_namespaces_labels_choose_for_its_containers(lighterd: Lighterd) -> None:
    labels = "containerd.io/defaults/snapshotter=native", "containerd.io/defaults/runtime=absent"
    gone = [f"{label.partition('=')[0]}=" for label in labels]
    lighterd.ctl("namespaces", "label", "default", *labels, check=True)
    try:
        refused = lighterd.ctl("containers", "create", REFERENCE, "a", "true")
        assert refused.returncode == 1 and b"absent" in refused.stderr
        key = labels[1].partition("=")[0]
        other = f"{key}=io.containerd.runsc.v1"
        lighterd.ctl("namespaces", "label", "default", other, check=True)
        refused = lighterd.ctl("containers", "create", REFERENCE, "a", "true")
        assert refused.returncode == 1 and b"io.containerd.runsc.v1" in refused.stderr
        runc = f"{key}=io.containerd.runc.v2"
        lighterd.ctl("namespaces", "label", "default", runc, check=True)
        lighterd.ctl("containers", "create", REFERENCE, "a", "true", check=True)
        lighterd.ctl("containers", "create", "--snapshotter", "overlayfs", REFERENCE, "b", "true",
                     check=True)  # fmt: skip
        shape = ("-f", "{{.Driver}}")
        assert lighterd.ctl("inspect", *shape, "a", "b").stdout == b"native\noverlayfs\n"
    finally:
        lighterd.ctl("namespaces", "label", "default", *gone, check=True)
