"""containerd's restart labels on containers that its own ctr makes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import lives
from tests.grpc.conftest import Ctr
from tests.harness import Lighterd, await_that
from tests.variants import NAME, variant

STATUS = "containerd.io/restart.status"
LOG_URI = "containerd.io/restart.loguri"
STOP_SIGNAL = "io.containerd.image.config.stop-signal"
SOON_S = 30.0


def run(ctr: Ctr, image: str, name: str, labels: dict[str, str], *command: str) -> None:
    words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    done = ctr("run", "-d", *words, image, name, *command)
    assert done.returncode == 0, done.stderr


def labels_of(ctr: Ctr, name: str) -> dict[str, str]:
    found: dict[str, Any] = json.loads(ctr("c", "info", name).stdout)
    return dict(found["Labels"])


def awaits(ctr: Ctr, name: str) -> Callable[[str], None]:
    return lambda count: await_that(
        lambda: labels_of(ctr, name).get("containerd.io/restart.count") == count,
        SOON_S,
        f"{name} was started again {count} times",
    )


def test_a_task_is_kept_running_and_its_output_kept(
    lighterd: Lighterd, busybox: str, ctr: Ctr, tmp_path: Path
) -> None:
    log = lighterd.base / "share" / "log"
    log.parent.mkdir()
    labels = {STATUS: "running", "containerd.io/restart.loguri": f"file://{log}"}
    run(ctr, busybox, "web", labels, "sh", "-c", "echo up; sleep 1000")
    os.kill(lives.task(lighterd, "web")["pid"], signal.SIGKILL)
    awaits(ctr, "web")("1")
    lives.await_task(lighterd, "web", "running")
    await_that(lambda: log.exists() and log.read_bytes() == b"up\n", SOON_S, "it wrote to its log")
    pid = lives.task(lighterd, "web")["pid"]
    lighterd.kill9()
    os.kill(pid, signal.SIGKILL)
    lighterd.start()
    awaits(ctr, "web")("2")
    # A client says that it stops it, and does.
    ctr("c", "label", "web", "containerd.io/restart.explicitly-stopped=true")
    lives.await_task(lighterd, "web", "running")
    ctr("t", "kill", "-s", "KILL", "web")
    lives.await_task(lighterd, "web", "stopped")
    lighterd.restart()
    assert lives.task(lighterd, "web")["status"] == "stopped"
    assert labels_of(ctr, "web")["containerd.io/restart.count"] == "2"


def test_on_failure_counts_in_its_label(lighterd: Lighterd, busybox: str, ctr: Ctr) -> None:
    labels = {STATUS: "running", "containerd.io/restart.policy": "on-failure:2"}
    run(ctr, busybox, "failing", labels, "sh", "-c", "exit 3")
    awaits(ctr, "failing")("2")
    lives.await_task(lighterd, "failing", "stopped")
    await_that(
        lambda: lives.task(lighterd, "failing")["restart_at"] is None, SOON_S, "it is given up"
    )
    odd = {STATUS: "running", "containerd.io/restart.policy": "sometimes"}
    run(ctr, busybox, "odd", odd, "true")
    lives.await_task(lighterd, "odd", "stopped")
    await_that(lambda: "'sometimes'" in lighterd.log_end(), SOON_S, "it is said why")


def test_sec_44_labels_that_ctr_copies_from_an_image_steer_nothing(
    lighterd: Lighterd, ctr: Ctr, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    own = {
        STATUS: "running",
        LOG_URI: f"binary:///bin/touch?{started}=x",
        "org.example.plain": "kept",
    }
    archive = tmp_path / "image.tar"
    # In this case Go's decoder takes it for Labels.
    archive.write_bytes(variant(LABELS=own))
    assert ctr("images", "import", str(archive)).returncode == 0
    run(ctr, NAME, "plain", {}, "sleep", "1000")
    assert labels_of(ctr, "plain") == {"org.example.plain": "kept", STOP_SIGNAL: "SIGTERM"}
    assert "drop label 'containerd.io/restart.loguri'" in lighterd.log_end()
    ctr("c", "label", "plain", f"{STATUS}=running")
    assert STATUS not in labels_of(ctr, "plain"), "nor later"
    ctr("t", "kill", "-s", "KILL", "plain")
    lives.await_task(lighterd, "plain", "stopped")
    # What differs from the image's is the caller's.
    log = lighterd.base / "share" / "log"
    log.parent.mkdir()
    run(ctr, NAME, "mine", {STATUS: "stopped", LOG_URI: f"file://{log}"}, "sleep", "1000")
    labels = labels_of(ctr, "mine")
    assert (labels[STATUS], labels[LOG_URI]) == ("stopped", f"file://{log}")
    assert lives.task(lighterd, "plain")["restart_at"] is None
    assert not started.exists()


def test_a_task_that_is_to_be_stopped_is(lighterd: Lighterd, busybox: str, ctr: Ctr) -> None:
    run(ctr, busybox, "web", {STATUS: "stopped"}, "sleep", "1000")
    made = ctr("c", "create", "--label", f"{STATUS}=running", busybox, "idle", "sleep", "1000")
    assert made.returncode == 0, made.stderr
    lives.await_task(lighterd, "web", "stopped")
    # One without a task is given one, as containerd's monitor does when it looks again.
    await_that(lambda: lives.task(lighterd, "idle")["status"] == "running", SOON_S, "it runs")
