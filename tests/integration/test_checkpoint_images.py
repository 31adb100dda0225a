"""Checkpoints as images: written, moved, refused where they come from outside, and restored."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lighter.proto.errors import FailedPrecondition
from tests import lives
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.integration.test_checkpoint import with_stand_in

REF = "example.com/box:evening"
FOREIGN = "this manager has not made it"


@pytest.fixture
def standing_in(make_lighterd: Callable[..., Lighterd], tmp_path: Path) -> Lighterd:
    """A manager whose runtime stands in for CRIU, with a container that has written a file."""
    lighterd = with_stand_in(make_lighterd, tmp_path)
    script = "test -e /made || date >/made; echo began; exec sleep 600"
    flags = ("--label", "kept=yes", "--stop-timeout", "1")
    lighterd.ctl("run", "-d", *flags, "--name", "box", REFERENCE, "sh", "-c", script, check=True)
    await_that(lambda: "began" in lighterd.ctl("logs", "box").stdout.decode(), 20, "it began")
    return lighterd


def _written(lighterd: Lighterd, container: str, target: Path) -> bytes:
    done = lighterd.ctl("cp", f"{container}:/made", str(target))
    return target.read_bytes() if not done.returncode else b""


def test_a_container_goes_to_an_image_and_comes_back(standing_in: Lighterd, tmp_path: Path) -> None:
    """With files and processes; what it was defined with comes along; the first one runs on."""
    lighterd = standing_in
    lighterd.ctl("c", "checkpoint", "--rw", "--task", "box", REF, check=True)
    assert b"running" in lighterd.ctl("--format", "json", "tasks", "ls", check=True).stdout
    lighterd.ctl("c", "restore", "-d", "--rw", "--live", "two", REF, check=True)
    with lighterd.client() as client:
        assert client.call("tasks", "get", id="two")["task"]["status"] == "running"
        first = client.call("containers", "get", id="box")["container"]
        second = client.call("containers", "get", id="two")["container"]
        topics = [
            event["topic"] for event in client.stream("events", "subscribe", since=0, follow=False)
        ]
    assert second["labels"]["kept"] == "yes" and second["options"]["stop_timeout_s"] == 1
    specs = [json.loads(one["spec"]) for one in (first, second)]
    assert [spec["linux"].pop("cgroupsPath")[-4:] for spec in specs] == ["/box", "/two"]
    assert specs[0] == specs[1]
    made = _written(lighterd, "box", tmp_path / "a")
    assert made and made == _written(lighterd, "two", tmp_path / "b")
    assert "/tasks/checkpointed" in topics
    assert not os.listdir(f"{lighterd.root}/content/ingest")
    lighterd.ctl("c", "restore", "-d", "three", REF, check=True)
    await_that(lambda: _written(lighterd, "three", tmp_path / "c") != b"", 20, "it began anew")
    again = lighterd.ctl("c", "restore", "-d", "three", REF)
    assert again.returncode and b"it already exists" in again.stderr


def test_a_task_goes_to_an_image_whose_name_is_made_up(
    standing_in: Lighterd, tmp_path: Path
) -> None:
    """`tasks checkpoint` without a directory, as ctr's: processes, files and image."""
    lighterd = standing_in
    names = [
        lighterd.ctl("tasks", "checkpoint", *flags, "box", check=True).stdout.decode().strip()
        for flags in ((), ("--exit",))
    ]
    assert len({*names}) == 2 and all(n.startswith("localhost/checkpoint:box-") for n in names)
    with lighterd.client() as client:
        assert client.call("tasks", "get", id="box")["task"]["status"] == "stopped"
    made = _written(lighterd, "box", tmp_path / "a")
    lighterd.ctl("rm", "box", check=True)
    lighterd.ctl("images", "rm", REFERENCE, check=True)
    lighterd.ctl("c", "restore", "-d", "--rw", "--live", "two", names[1], check=True)
    assert made and made == _written(lighterd, "two", tmp_path / "b")
    assert REFERENCE in lighterd.ctl("images", "ls", "-q", check=True).stdout.decode().split()


def test_what_is_not_in_a_checkpoint_is_said(standing_in: Lighterd) -> None:
    lighterd = standing_in
    lighterd.ctl("c", "checkpoint", "box", REF, check=True)
    for flags, said in (
        (("--rw", "--live"), b"no files (checkpoint --rw) and no processes"),
        (("--live",), b"no processes"),
    ):
        done = lighterd.ctl("c", "restore", "-d", *flags, "two", REF)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    none = lighterd.ctl("c", "restore", "-d", "two", "docker.io/library/busybox:test")
    assert none.returncode == 1 and b"is no checkpoint" in none.stderr
    assert lighterd.ctl("c", "ls", "-q", check=True).stdout.split() == [b"box"]
    lighterd.ctl("c", "checkpoint", "--task", "--exit", "box", REF, check=True)
    with lighterd.client() as client:
        assert client.call("tasks", "get", id="box")["task"]["status"] == "stopped"


def test_the_volumes_of_a_restored_container_have_to_be_there(standing_in: Lighterd) -> None:
    lighterd = standing_in
    lighterd.ctl("create", "--name", "kept", "-v", "data:/d", REFERENCE, "true", check=True)
    lighterd.ctl("c", "checkpoint", "kept", REF, check=True)
    lighterd.ctl("rm", "kept", check=True)
    lighterd.ctl("volume", "rm", "data", check=True)
    refused = lighterd.ctl("c", "restore", "-d", "two", REF)
    assert refused.returncode == 1 and b"volume data: there is none" in refused.stderr
    lighterd.ctl("volume", "create", "data", check=True)
    lighterd.ctl("c", "restore", "-d", "two", REF, check=True)
    refused = lighterd.ctl("volume", "rm", "data")
    assert b"container two uses it" in refused.stderr


def test_f36_a_manager_killed_in_a_checkpoint_leaves_nothing_of_it(standing_in: Lighterd) -> None:
    lighterd = standing_in
    lighterd.restart(FAULT="checkpoint.read:abort")
    checkpoint = ("c", "checkpoint", "--rw", "--task", "box", REF)
    assert lighterd.ctl(*checkpoint).returncode != 0
    assert lighterd.process is not None
    lighterd.process.wait(20)
    lighterd.start()
    await_that(lambda: lives.task(lighterd, "box")["status"] == "running", 20, "it is thawed")
    assert REF not in lighterd.ctl("images", "ls", "-q", check=True).stdout.decode()
    await_that(lambda: not os.listdir(f"{lighterd.root}/content/ingest"), 20, "nothing is left")
    lighterd.ctl(*checkpoint, check=True)
    lighterd.ctl("c", "restore", "-d", "--rw", "--live", "two", REF, check=True)


def test_one_from_outside_is_taken_only_when_trusted(
    standing_in: Lighterd, make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    """SEC-81: its specification could run hooks as root; none does until somebody says so."""
    lighterd = standing_in
    lighterd.ctl("c", "checkpoint", "--rw", "--image", "--task", "box", REF, check=True)
    archive, proof = tmp_path / "box.tar", tmp_path / "proof"
    lighterd.ctl("images", "export", str(archive), REF, check=True)
    _add_hook(archive, ["/bin/touch", str(proof)])
    other = make_lighterd().start()
    other.ctl("images", "import", "--no-unpack", str(archive), check=True)
    for flags in ((), ("--live",)):
        refused = other.ctl("c", "restore", "-d", "--rw", *flags, "two", REF)
        assert refused.returncode == 1 and FOREIGN in refused.stderr.decode(), refused.stderr
    with other.client() as client:
        with pytest.raises(FailedPrecondition, match=FOREIGN):
            client.call("tasks", "create", id="x", checkpoint_image=REF)
    assert not proof.exists() and not other.ctl("c", "ls", "-q", check=True).stdout
    other.ctl("c", "restore", "-d", "--rw", "--trust", "two", REF, check=True)
    assert proof.exists(), "the archive did ask for it"
    assert _written(other, "two", tmp_path / "c") == _written(lighterd, "box", tmp_path / "d")
    # The one that it was made of did not change: here it is still this manager's own.
    lighterd.ctl("c", "restore", "-d", "two", REF, check=True)


COUNTS = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/at; sleep 0.1; done"


def test_by_criu_or_the_reason_why_not(lighterd: Lighterd, busybox: str) -> None:
    """A copy of a running container counts on where that was, in a root of its own."""
    lighterd.ctl("run", "-d", busybox, "c", "sh", "-c", COUNTS, check=True)
    await_that(lambda: _numbers(lighterd, "c")[-1:] > [3], 20, "it counts")
    done = lighterd.ctl("c", "checkpoint", "--rw", "--task", "c", REF, timeout=60)
    if done.returncode and not os.environ.get("CRIU_WORKS"):
        said = done.stderr.decode()
        assert said.startswith("ctl: checkpoint task c: criu ") and said.count("\n") == 1, said
        before = _numbers(lighterd, "c")[-1]
        await_that(lambda: _numbers(lighterd, "c")[-1] > before, 20, "it runs on")
        assert REF.encode() not in lighterd.ctl("images", "ls", check=True).stdout
        return
    assert done.returncode == 0, done.stderr
    before = _numbers(lighterd, "c")[-1]
    await_that(lambda: _numbers(lighterd, "c")[-1] > before, 20, "it runs on")
    lighterd.ctl("c", "restore", "-d", "--rw", "--live", "copy", REF, check=True, timeout=60)
    await_that(lambda: len(_numbers(lighterd, "copy")) > 3, 20, "the copy counts")
    found = _numbers(lighterd, "copy")
    assert found == list(range(found[0], found[-1] + 1)) and found[0] > 3
    at = lighterd.ctl("exec", "copy", "cat", "/at", check=True).stdout
    assert int(at) >= found[0]
    with lighterd.client() as client:
        for name in ("c", "copy"):  # each in a cgroup of its own
            pid = client.call("tasks", "get", id=name)["task"]["pid"]
            assert f"/default/{name}\n" in Path(f"/proc/{pid}/cgroup").read_text()


def _numbers(lighterd: Lighterd, container: str) -> list[int]:
    return [int(word) for word in lighterd.ctl("logs", container).stdout.split()] or [0]


def _add_hook(archive: Path, argv: list[str]) -> None:
    """Make the archive what a hostile one is: its spec runs `argv` on the host."""
    import hashlib

    from google.protobuf.any_pb2 import Any

    from lighter.daemon.checkpoints.document import CONFIG

    tree = archive.with_suffix("")
    tree.mkdir()
    subprocess.run(["tar", "-C", str(tree), "-xf", str(archive)], check=True)
    blobs = tree / "blobs" / "sha256"

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    top = json.loads((tree / "index.json").read_text())
    (named,) = top["manifests"]
    index = json.loads((blobs / named["digest"].removeprefix("sha256:")).read_text())
    (config,) = [one for one in index["manifests"] if one["mediaType"] == CONFIG]
    value = Any.FromString((blobs / config["digest"].removeprefix("sha256:")).read_bytes())
    spec = json.loads(value.value)
    spec["hooks"] = {"createRuntime": [{"path": argv[0], "args": argv}]}
    value.value = json.dumps(spec).encode()
    config.update(put(value.SerializeToString()))
    named.update(put(json.dumps(index).encode()))
    (tree / "index.json").write_text(json.dumps(top))
    subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True)


def test_one_that_ends_its_container_is_there_first_and_no_policy_starts_it(
    standing_in: Lighterd,
) -> None:
    lighterd = standing_in
    image, idle = "docker.io/library/busybox:test", ("sh", "-c", "date >/made; exec sleep 600")
    lighterd.ctl("run", "-d", "--restart", "always", "--name", "again", image, *idle, check=True)
    lighterd.ctl("run", "-d", "--rm", "--name", "gone", image, *idle, check=True)
    for name in ("again", "gone"):
        flags = ("--rw", "--task", "--exit")
        lighterd.ctl("c", "checkpoint", *flags, name, f"example.com/{name}:1", check=True)
        lighterd.ctl("c", "restore", "-d", "--rw", f"{name}2", f"example.com/{name}:1", check=True)
    with lighterd.client() as client:
        assert client.call("tasks", "get", id="again")["task"]["status"] == "stopped"
    await_that(lambda: b"gone\n" not in lighterd.ctl("c", "ls", "-q").stdout, 20, "--rm is heeded")
