"""What is asked for to free what a lost shim held: of a worker, and of the runtime."""

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from lighter.daemon.images.worker import Worker
from lighter.daemon.procfs import read_boot_id
from lighter.daemon.spawning.placement import remove_empty
from lighter.daemon.tasks import processes
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.freeing import WorkerFreer
from lighter.proto import states
from lighter.proto.paths import RUNTIME_PATH, Root, State
from tests.harness import await_that
from tests.lives import process_state
from tests.unit.daemon.test_processes import lives_on, session
from tests.unit.daemon.test_recovery import start_of

NOBODY = 1 << 30  # a pid that the kernel gives to nobody
INSTANCE = "7e577e57"


class Asked:
    """In the worker's place: what a job says is all that matters here, and what is so by then."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.look = look

    async def run(self, job: dict[str, Any], _fds: tuple[int, ...]) -> dict[str, Any]:
        self.jobs.append(job)
        self.look()
        return {"killed": False, "left": []}


def freed(
    place: Path,
    config: str | None,
    runtime: str = "true",
    *,
    instance: str = INSTANCE,
    shim: dict[str, Any] | None = None,
    look: Callable[[], None] = lambda: None,
    **row: Any,
) -> dict[str, Any]:
    """The job that a lost shim's task leads to; `config` is its config.json, if that is there, and
    `shim` what its shim has written.
    """
    state = State(str(place / "state"))
    bundle = Bundle(state, Root(str(place / "root")), "default", "c")
    if config is not None:
        os.makedirs(bundle.dir)
        Path(bundle.dir, "config.json").write_text(config)
    if shim is not None:
        Path(bundle.record).write_text(json.dumps({"incarnation": "a" * 16, "start": 1, **shim}))
    row = {"boot_id": read_boot_id(), "shim_pid": NOBODY, "shim_start": 1, **row}
    options = {"runtime": runtime, **row.pop("options", {})}
    entry = Entry(
        "default", "c", "a" * 16, states.RUNNING, "", created_at=1, options=options, **row
    )
    asked = Asked(look)
    freer = WorkerFreer(cast(Worker, asked), instance, state, read_boot_id(), 20)
    asyncio.run(freer.free(entry, bundle))
    [job] = asked.jobs
    return job


def test_its_cgroup_is_what_its_spec_says(tmp_path: Path) -> None:
    config = '{"linux": {"cgroupsPath": "/of/spec"}}'
    job = freed(tmp_path, config, options={"cgroup": "/of/row"})
    assert job["cgroup"] == "/of/spec"


def test_f56_without_its_bundle_its_row_knows_the_cgroup(tmp_path: Path) -> None:
    assert freed(tmp_path, None)["cgroup"] == f"/lighter/{INSTANCE}/default/c"
    assert freed(tmp_path, None, options={"cgroup": "/of/row"})["cgroup"] == "/of/row"


def test_the_loop_neither_looks_into_cgroups_nor_removes_trees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either there may be many, and other containers wait for it."""
    of_loop, threads = threading.get_ident(), []

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **more: Any) -> Any:
            threads.append(threading.get_ident())
            return real(*args, **more)

        return noted

    monkeypatch.setattr(processes, "in_cgroup", noting(processes.in_cgroup))
    monkeypatch.setattr(shutil, "rmtree", noting(shutil.rmtree))
    freed(tmp_path, '{"linux": {"cgroupsPath": "/of/spec"}}')
    assert len(threads) == 2 and of_loop not in threads


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
    assert freed(tmp_path, None, options={"cgroup": "/of/row"}, **row)["cgroup"] == ""


@pytest.fixture
def instance() -> Iterator[str]:
    name = os.urandom(4).hex()
    yield name
    remove_empty(name)


@pytest.mark.root
def test_f06_a_runtime_that_outlived_its_shim_is_ended_first(tmp_path: Path, instance: str) -> None:
    """It would go on making what the worker's job frees."""
    with session(instance) as (shim, runtime):

        def look() -> None:
            await_that(lambda: process_state(runtime) in ("", "Z"), 20, "the runtime is ended")

        record = {"pid": shim, "boot_id": read_boot_id()}
        freed(tmp_path, "{}", instance=instance, shim=record, look=look)


@pytest.mark.root
def test_who_has_a_shims_session_after_a_reboot_is_left_alone(
    tmp_path: Path, instance: str
) -> None:
    with session(instance) as (shim, stranger):
        record = {"pid": shim, "boot_id": "an-earlier-boot"}
        freed(tmp_path, "{}", instance=instance, shim=record)
        assert lives_on(stranger)


def test_the_runtime_gets_an_environment_of_path_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime's hooks would see the manager's, and what a variable says may change its ways."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "runtime-of-test"
    program.write_text(f"#!/bin/sh\ntr '\\0' '\\n' </proc/self/environ >{tmp_path}/environ\n")
    program.chmod(0o755)
    freed(tmp_path, None, runtime=program.name)  # which the manager's own path finds
    assert (tmp_path / "environ").read_text() == f"PATH={RUNTIME_PATH}\n"
