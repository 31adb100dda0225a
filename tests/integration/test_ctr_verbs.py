"""Words of ctr's that few use: what they take, what they leave, what they keep."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from lighter.proto.paths import cgroup_path
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE


def said(lighterd: Lighterd, *words: str) -> list[str]:
    return lighterd.ctl(*words, check=True).stdout.decode().split()


def test_a_log_uri_of_one_start_takes_its_output_alone(manager: Lighterd) -> None:
    """In place of the definition's, until the next start."""
    (share := manager.base / "share").mkdir(exist_ok=True)
    own, once = share / "own", share / "once"
    script = "echo to-out; echo to-err >&2"
    words = ("--log-uri", f"file://{own}", REFERENCE, "c", "sh", "-c", script)
    manager.ctl("containers", "create", *words, check=True)
    done = manager.ctl("tasks", "start", "--log-uri", f"file://{once}", "c", check=True)
    assert done.stdout == b""
    assert sorted(once.read_text().split()) == ["to-err", "to-out"] and not own.exists()
    manager.ctl("tasks", "start", "c", check=True)
    assert sorted(own.read_text().split()) == ["to-err", "to-out"]
    assert len(once.read_text().split()) == 2
    for uri in ("syslog://x", "file://relative", "/tmp/x"):
        refused = manager.ctl("tasks", "start", "-d", "--log-uri", uri, "c")
        assert refused.returncode == 1 and refused.stderr.count(b"\n") == 1, refused.stderr
    assert said(manager, "tasks", "ls", "-q") == []


def test_a_log_uri_of_a_start_is_beside_the_log(manager: Lighterd) -> None:
    (share := manager.base / "share").mkdir(exist_ok=True)
    manager.ctl("containers", "create", REFERENCE, "c", "echo", "word", check=True)
    uri = f"file://{share}/beside"
    manager.ctl("tasks", "start", "--log-uri", uri, "c", check=True)
    assert (share / "beside").read_text() == "word\n"
    assert manager.ctl("logs", "c", check=True).stdout == b"word\n"


def test_a_log_uri_of_an_exec(manager: Lighterd) -> None:
    """A file, and a program, which is told whose output it gets."""
    (share := manager.base / "share").mkdir(exist_ok=True)
    program = share / "logger"
    program.write_text(
        "#!/bin/sh\n"
        f"echo $CONTAINER_NAMESPACE/$CONTAINER_ID $1=$2 >{share}/who\n"
        f"exec 5>&-\nexec cat <&3 >{share}/got\n"
    )
    program.chmod(0o755)
    manager.ctl("run", "-d", REFERENCE, "c", "sleep", "1000", check=True)
    done = manager.ctl("tasks", "exec", "--log-uri", f"file://{share}/out", "c", "sh", "-c",
                       "echo one; echo two >&2; exit 3")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")
    assert sorted((share / "out").read_text().split()) == ["one", "two"]
    words = ("--log-uri", f"binary://{program}?key=value", "c", "echo", "three")
    manager.ctl("tasks", "exec", "-d", *words, check=True)
    for name, text in (("got", "three\n"), ("who", "default/c key=value\n")):
        await_that(lambda p=share / name, t=text: p.exists() and p.read_text() == t, 20, name)
    refused = manager.ctl("tasks", "exec", "--log-uri", "binary:///proc/1/exe", "c", "true")
    assert refused.returncode == 125 and refused.stderr.count(b"\n") == 1, refused.stderr


def test_a_kept_snapshot_is_nobodys_but_its_removers(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """Not the collector's, and not what a start takes for a container's that is gone."""
    lighterd = make_lighterd().start()
    lighterd.import_busybox()
    script = "echo words >/made; echo made; exec sleep 1000"
    for name in ("c", "plain"):
        lighterd.ctl("run", "-d", REFERENCE, name, "sh", "-c", script, check=True)
    await_that(lambda: lighterd.ctl("logs", "c").stdout == b"made\n", 20, "it has written")
    kept = ("containers", "delete", "--keep-snapshot")
    refused = lighterd.ctl(*kept, "c")
    assert refused.returncode == 1 and b"it is running" in refused.stderr, refused.stderr
    lighterd.ctl(*kept, "-f", "c", check=True)
    lighterd.ctl("containers", "delete", "-f", "plain", check=True)
    assert said(lighterd, "containers", "ls", "-q") == []
    lighterd.ctl("system", "prune", check=True)
    lighterd.restart()
    snapshot = json.loads(lighterd.ctl("snapshots", "info", "c", check=True).stdout)
    assert snapshot["kind"] == "active"
    assert lighterd.ctl("snapshots", "info", "plain").returncode == 1
    layer = lighterd.ctl("snapshots", "diff", "--compression", "none", "c", check=True).stdout
    assert b"made" in layer and b"words\n" in layer
    taken = lighterd.ctl("containers", "create", REFERENCE, "c", "true")
    assert taken.returncode == 1 and b"already exists" in taken.stderr, taken.stderr
    lighterd.ctl("snapshots", "rm", "c", check=True)
    lighterd.ctl("containers", "create", REFERENCE, "c", "true", check=True)
    lighterd.ctl(*kept, "c", check=True)
    assert "c" in said(lighterd, "snapshots", "ls", "-q")
    lighterd.ctl("snapshots", "rm", "c", check=True)


def test_a_kept_snapshot_of_a_task_that_has_ended(manager: Lighterd) -> None:
    """As without the flag the ended task goes with the container."""
    manager.ctl("run", "-d", REFERENCE, "c", "true", check=True)
    manager.ctl("wait", "c", check=True)
    manager.ctl("containers", "delete", "--keep-snapshot", "c", check=True)
    assert said(manager, "tasks", "ls", "-q") == said(manager, "containers", "ls", "-q") == []
    manager.ctl("snapshots", "rm", "c", check=True)


def test_the_snapshot_of_what_removes_itself_is_not_kept(manager: Lighterd) -> None:
    """Not by a delete either, which would end it: it goes on."""
    manager.ctl("run", "-d", "--rm", REFERENCE, "c", "sleep", "1000", check=True)
    refused = manager.ctl("containers", "delete", "-f", "--keep-snapshot", "c")
    assert refused.returncode == 1 and b"it was made with --rm" in refused.stderr, refused.stderr
    assert said(manager, "tasks", "ls", "-q") == ["c"]
    manager.ctl("rm", "-f", "c", check=True)


def test_filters_are_words(manager: Lighterd) -> None:
    for name, label in (("one", "tier=web"), ("two", "tier=db"), ("three", "tier=web")):
        manager.ctl("c", "create", "--label", label, REFERENCE, name, "true", check=True)
    ls = ("containers", "ls", "-q")
    assert said(manager, *ls, "labels.tier==web") == ["one", "three"]
    assert said(manager, *ls, "labels.tier==web,id~=^t", "id==two") == ["three", "two"]
    assert said(manager, *ls, f"image=={REFERENCE},runtime.name~=runc") == ["one", "three", "two"]
    assert said(manager, *ls, "labels.tier==none") == []
    wrong = manager.ctl(*ls, "=x")
    assert wrong.returncode == 1 and b"parse filter" in wrong.stderr
    for name in ("build-1", "build-2", "other"):
        manager.ctl("leases", "create", "--id", name, f"of={name[:1]}", check=True)
    ls = ("leases", "ls", "-q")
    assert said(manager, *ls, "id~=^build") == ["build-1", "build-2"]
    assert said(manager, *ls, "labels.of==o", "id==build-1") == ["build-1", "other"]
    assert said(manager, *ls) == ["build-1", "build-2", "other"]
    manager.ctl("leases", "remove", "build-1", "build-2", "other", check=True)


def _cgroups(lighterd: Lighterd, namespace: str) -> list[Path]:
    inside = os.path.dirname(cgroup_path(lighterd.instance, namespace, "c"))
    found = [Path(f"/sys/fs/cgroup{inside}"), *Path("/sys/fs/cgroup").glob(f"*{inside}")]
    return [path for path in found if path.is_dir()]


def test_a_namespace_goes_with_its_cgroup(manager: Lighterd) -> None:
    for namespace in ("kept", "gone"):
        ctl = ("-n", namespace)
        manager.ctl(*ctl, "images", "import", "-", input=_archive(manager), check=True)
        manager.ctl(*ctl, "run", REFERENCE, "c", "true", check=True)
        manager.ctl(*ctl, "rm", "c", check=True)
        manager.ctl(*ctl, "images", "rm", REFERENCE, check=True)
        assert _cgroups(manager, namespace)
    manager.ctl("namespaces", "rm", "kept", check=True)
    assert _cgroups(manager, "kept")
    manager.ctl("namespaces", "rm", "--cgroup", "gone", check=True)
    assert not _cgroups(manager, "gone")


def _archive(lighterd: Lighterd) -> bytes:
    return bytes(lighterd.ctl("images", "export", "-", REFERENCE, check=True).stdout)


def test_images_that_no_container_has_are_pruned(manager: Lighterd) -> None:
    manager.ctl("images", "tag", REFERENCE, "example.com/spare:1", "example.com/used:1", check=True)
    manager.ctl("c", "create", "example.com/used:1", "c", "true", check=True)
    manager.ctl("c", "create", REFERENCE, "d", "true", check=True)
    none = manager.ctl("images", "prune", check=True)
    assert none.stdout == b"" and b"--all" in none.stderr
    assert said(manager, "images", "prune", "--all") == ["example.com/spare:1"]
    assert said(manager, "images", "ls", "-q") == [REFERENCE, "example.com/used:1"]
    manager.ctl("rm", "c", check=True)
    manager.ctl("images", "rm", "example.com/used:1", check=True)
