"""What is asked for when a lost shim's task is settled: of a worker, and of the runtime."""

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from lighter.daemon.images.worker import Worker
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.recovery import read_boot_id
from lighter.daemon.tasks.settle import WorkerSettler
from lighter.proto import states
from lighter.proto.paths import RUNTIME_PATH, Root, State
from tests.unit.daemon.test_recovery import start_of

NOBODY = 1 << 30  # a pid that the kernel gives to nobody
INSTANCE = "7e577e57"


class Asked:
    """In the worker's place: what a job says is all that matters here."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    async def run(self, job: dict[str, Any], _fds: tuple[int, ...]) -> dict[str, Any]:
        self.jobs.append(job)
        return {"killed": False, "left": []}


def settled(place: Path, config: str | None, runtime: str = "true", **row: Any) -> dict[str, Any]:
    """The job that a lost shim's task leads to; `config` is its config.json, if that is there."""
    state = State(str(place / "state"))
    bundle = Bundle(state, Root(str(place / "root")), "default", "c")
    if config is not None:
        os.makedirs(bundle.dir)
        Path(bundle.dir, "config.json").write_text(config)
    row = {"boot_id": read_boot_id(), "shim_pid": NOBODY, "shim_start": 1, **row}
    options = {"runtime": runtime, **row.pop("options", {})}
    entry = Entry(
        "default", "c", "a" * 16, states.RUNNING, "", created_at=1, options=options, **row
    )
    asked = Asked()
    settler = WorkerSettler(cast(Worker, asked), INSTANCE, state, read_boot_id(), 20)
    asyncio.run(settler.settle(entry, bundle))
    [job] = asked.jobs
    return job


def test_its_cgroup_is_what_its_spec_says(tmp_path: Path) -> None:
    config = '{"linux": {"cgroupsPath": "/of/spec"}}'
    job = settled(tmp_path, config, options={"cgroup": "/of/row"})
    assert job["cgroup"] == "/of/spec"


def test_f56_without_its_bundle_its_row_knows_the_cgroup(tmp_path: Path) -> None:
    assert settled(tmp_path, None)["cgroup"] == f"/lighter/{INSTANCE}/default/c"
    assert settled(tmp_path, None, options={"cgroup": "/of/row"})["cgroup"] == "/of/row"


@pytest.mark.parametrize(
    "row",
    [
        {"boot_id": "an-earlier-boot"},
        {"shim_pid": 0},
        {"shim_pid": os.getpid(), "shim_start": start_of(os.getpid())},
    ],
    ids=["of an earlier boot", "no shim", "its shim lives"],
)
def test_f56_who_may_be_another_is_not_ended(tmp_path: Path, row: dict[str, Any]) -> None:
    """A container that runs below another state directory, or who was there after a reboot."""
    assert settled(tmp_path, None, options={"cgroup": "/of/row"}, **row)["cgroup"] == ""


def test_the_runtime_gets_an_environment_of_path_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime's hooks would see the manager's, and what a variable says may change its ways."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "runtime-of-test"
    program.write_text(f"#!/bin/sh\ntr '\\0' '\\n' </proc/self/environ >{tmp_path}/environ\n")
    program.chmod(0o755)
    settled(tmp_path, None, runtime=program.name)  # which the manager's own path finds
    assert (tmp_path / "environ").read_text() == f"PATH={RUNTIME_PATH}\n"
