"""`ctl content`, `leases`, `system df` and `prune`: requests, columns, exit codes."""

import json
import time

import pytest

from lighter.ctl.output import decimal_size_text, human_duration, local_time
from lighter.proto.errors import FailedPrecondition, NotFound
from tests.fakes.manager import FakeManager
from tests.unit.ctl.conftest import Ctl

DIGEST = "sha256:" + "a" * 64
S = 1_000_000_000


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        *((0, "0B"), (999, "999B"), (1000, "1kB"), (1442, "1.442kB"), (2140000, "2.14MB")),
        *((999999, "1000kB"), (10**15, "1PB"), (5 * 10**21, "5000EB")),
    ],
)
def test_sizes_of_content_are_go_units(size_bytes: int, text: str) -> None:
    assert decimal_size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute")),
        *((119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes")),
        *((3600, "About an hour"), (5399, "About an hour"), (5400, "2 hours")),
        *((47 * 3600, "47 hours"), (48 * 3600, "2 days"), (14 * 86400, "2 weeks")),
        *((60 * 86400, "2 months"), (2 * 365 * 86400, "2 years"), (-5, "Less than a second")),
    ],
)
def test_ages_are_go_units(seconds: int, text: str) -> None:
    assert human_duration(1000 * S, (1000 + seconds) * S) == text


def test_lease_times_have_the_local_offset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for zone, text in (
        ("UTC", "1970-01-01T00:00:01Z"),
        ("XXX-2", "1970-01-01T02:00:01+02:00"),
        ("XXX3:30", "1969-12-31T20:30:01-03:30"),
    ):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert local_time(1 * S) == text
    monkeypatch.undo()
    time.tzset()


def test_active_ingests_are_filtered_by_a_regular_expression(
    manager: FakeManager, ctl: Ctl
) -> None:
    row = {"offset": 5, "total_bytes": 0, "expected": "", "updated_at": 0}
    began = time.time_ns() - 90 * 60 * S
    rows = [{"ref": ref, "started_at": began, **row} for ref in ("layer-a", "index-b")]
    manager.on("content.active", {"ingests": rows})
    assert ctl("content", "active", "^layer").stdout.decode().splitlines() == [
        "REF     SIZE AGE",
        "layer-a 5B   2 hours",
    ]
    assert ctl("content", "active", "(").returncode == 2


def test_rm_prints_what_went_and_ends_with_1_for_what_could_not(
    manager: FakeManager, ctl: Ctl
) -> None:
    def delete(ask: object) -> object:
        digest = ask.body["digest"]  # type: ignore[attr-defined]
        if digest == "gone":
            return NotFound("delete content gone: there is none")
        if digest == "bad":
            return FailedPrecondition("delete content bad: no")
        return {}

    manager.on("content.delete", delete)
    done = ctl("content", "rm", "one", "gone", "two")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\ntwo\n", b"")
    done = ctl("content", "rm", "bad", "two")
    assert (done.returncode, done.stdout) == (1, b"two\n")
    assert done.stderr == b"ctl: delete content bad: no\n"


def test_why_prints_each_chain_as_a_tree(manager: FakeManager, ctl: Ctl) -> None:
    chain = [
        {"kind": "image", "name": "busy\x1b[2Jbox", "how": "it is an image"},
        {"kind": "content", "name": DIGEST, "how": "target"},
    ]
    kept = [{"what": "content", "chains": [chain]}, {"what": "snapshot native", "chains": []}]
    manager.on("content.why", {"kept": kept})
    lines = ctl("content", "why", DIGEST).stdout.decode().splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        *("BY", f"content {DIGEST}", "it is an image", "target", f"snapshot native {DIGEST}"),
        "the next collection removes it",
    ]
    assert r"\x1b[2J" in lines[2]
    ask = manager.asked("content.why")
    assert ask.body == {"name": DIGEST, "snapshotter": ""}
    assert json.loads(ctl("content", "why", DIGEST, "--format", "json").stdout) == kept


def test_a_lease_expires_after_a_day_unless_it_is_told_otherwise(
    manager: FakeManager, ctl: Ctl
) -> None:
    manager.on("leases.create", {"lease": {"id": "made-up"}})
    began = time.time()
    assert ctl("leases", "create", "a=b", "bare").stdout == b"made-up\n"
    labels = manager.asked("leases.create").body["labels"]
    expire = labels.pop("containerd.io/gc.expire")
    at = time.mktime(time.strptime(expire, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert began + 86400 - 2 <= at <= time.time() + 86400 + 1
    assert labels == {"a": "b", "bare": ""}
    ctl("leases", "create", "--id", "mine", "-x", "0")
    assert manager.asked("leases.create").body == {"id": "mine", "labels": {}}


def test_df_adds_up_and_prune_lists(manager: FakeManager, ctl: Ctl) -> None:
    kinds = ("image", "container", "kept", "orphan", "ingest", "logs", "database", "other")
    usage = [{"kind": kind, "count": 1, "size_bytes": 1 << 20} for kind in kinds]
    manager.on("system.df", {"usage": usage})
    lines = ctl("system", "df").stdout.decode().splitlines()
    assert lines[0].split() == ["KIND", "COUNT", "SIZE", "WHAT"]
    assert lines[1].startswith("IMAGE ") and "1.0 MiB" in lines[1]
    assert lines[-1].split() == ["TOTAL", "8.0", "MiB"]
    pruned = {
        "namespace": "n",
        "content": [DIGEST],
        "images": ["i"],
        "ingests": ["r"],
        "snapshots": [{"snapshotter": "native", "key": "k"}],
        "size_bytes": 2048,
    }
    manager.on("system.prune", {"pruned": [pruned]})
    lines = ctl("system", "prune", "--dry-run").stdout.decode().splitlines()
    assert [line.split() for line in lines] == [
        ["NAMESPACE", "KIND", "NAME"],
        ["n", "content", DIGEST],
        ["n", "snapshot", "native/k"],
        ["n", "image", "i"],
        ["n", "ingest", "r"],
        ["would", "be", "freed:", "2.0", "KiB"],
    ]
    assert manager.asked("system.prune").body == {"dry_run": True}


def test_edit_wants_an_editor_and_a_bare_prune_shows_its_help(ctl: Ctl) -> None:
    done = ctl("content", "edit", DIGEST, env={"EDITOR": ""})
    assert done.returncode == 2
    assert b"an editor is needed" in done.stderr
    assert b"references" in ctl("content", "prune").stdout + ctl("content", "prune").stderr
