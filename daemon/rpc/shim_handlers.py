"""Methods about the shims that run: what each is, and whether another version could adopt them."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from lighter.daemon.metadata import copies
from lighter.daemon.procfs import is_stopped
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.upgrade import FIRST_VERSION, RunningShim, judge, schema_of
from lighter.proto.paths import Root
from lighter.proto.release import OWN, Release, checked, protocols_of

CONNECTED, SILENT, STOPPED, REFUSED = "connected", "silent", "stopped", "refused"


def shim_methods(
    supervisor: Supervisor, bundle_of: Callable[[str, str], Bundle], root: Root
) -> dict[str, Method]:
    async def shims(_call: Call, _body: Mapping[str, Any]) -> Any:
        entries = [entry for entry in supervisor.entries.values() if entry.pidfd >= 0]
        found = [_shim(entry, bundle_of(entry.namespace, entry.id)) for entry in entries]
        # The kernel walks a process's page tables for this: a millisecond for each.
        measured = await asyncio.to_thread(lambda: [_measure(shim["pid"]) for shim in found])
        return {"shims": [{**shim, **facts} for shim, facts in zip(found, measured, strict=True)]}

    async def upgrade_check(_call: Call, body: Mapping[str, Any]) -> Any:
        fields = Fields("system.upgrade_check", body)
        release = checked(
            fields.needed("version"),
            body.get("protocols"),
            fields.integer("schema"),
            fields.integer("schema_newest"),
            "the request",
        )

        entries = [entry for entry in supervisor.entries.values() if entry.pidfd >= 0]
        running = [_running(entry, bundle_of(entry.namespace, entry.id)) for entry in entries]
        schema = await asyncio.to_thread(schema_of, root.database)
        verdict = judge(release, running, schema, OWN)
        no_room = await asyncio.to_thread(_no_room, release, schema, root.database)
        return {
            "version": release.version,
            "running": OWN.version,
            "can_take_over": verdict.can_take_over,
            "shims": verdict.shims,
            "refused": [
                {**shim._asdict(), "protocols": list(shim.protocols)} for shim in verdict.refused
            ],
            "problems": list(verdict.problems),
            "warnings": [*verdict.warnings, *no_room],
        }

    return {
        "system.shims": Method(unary=shims),
        "system.upgrade_check": Method(unary=upgrade_check),
    }


def _no_room(release: Release, schema: int, database: str) -> list[str]:
    """What the copy of the database lacks that this version makes before it changes the schema."""
    if not 0 < schema < release.schema:
        return []
    missing = copies.missing_room(database, copies.size_of(database))
    return [f"no room to copy the database before its migration: {missing}"] if missing else []


def _shim(entry: Entry, bundle: Bundle) -> dict[str, Any]:
    said = entry.peer.identity if entry.peer else bundle.shim_record() or {}
    state, reason = _state(entry)
    return {
        "namespace": entry.namespace,
        "id": entry.id,
        "pid": entry.shim_pid,
        "incarnation": entry.incarnation,
        "version": str(said.get("version", "")),
        "protocol": entry.peer.version if entry.peer else 0,
        "protocols": list(protocols_of(said)),
        "state": state,
        "reason": reason,
    }


def _running(entry: Entry, bundle: Bundle) -> RunningShim:
    """The shim as it describes itself; if it is not connected, as its record does, if that can be
    read.
    """
    said = entry.peer.identity if entry.peer else bundle.shim_record() or {}
    known = said.get("pid") == entry.shim_pid
    return RunningShim(
        entry.namespace,
        entry.id,
        entry.shim_pid,
        str(said.get("version", FIRST_VERSION)) if known else "",
        protocols_of(said) if known else (),
    )


def _state(entry: Entry) -> tuple[str, str]:
    """How the shim is, and why it is not connected."""
    if entry.peer is None:
        return SILENT, entry.unknown_reason or "it has not connected"
    if entry.peer.version == 0:
        return REFUSED, entry.unknown_reason
    if is_stopped(entry.shim_pid):
        return STOPPED, "SIGSTOP, or a debugger"
    if entry.peer.silent_since is not None:
        silent_s = time.monotonic() - entry.peer.silent_since
        return SILENT, f"it has not answered for {silent_s:.0f} s"
    return CONNECTED, ""


def _measure(pid: int) -> dict[str, int | None]:
    """Since when it runs, and its proportional set size: a page shared by n counts as 1/n."""
    try:
        process = psutil.Process(pid)
        started_at = int(process.create_time() * 1e9)
        return {"started_at": started_at, "pss_bytes": int(process.memory_full_info().pss)}
    except psutil.Error:  # it is gone
        return {"started_at": None, "pss_bytes": 0}
