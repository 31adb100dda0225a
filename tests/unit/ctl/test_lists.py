"""`ctl ps` and `ctl ls`: filters and templates over what a manager of scripted answers lists."""

import json
import os
from typing import Any

import pytest

from tests.fakes.manager import FakeManager
from tests.unit.ctl.conftest import Ctl

DIGEST = "sha256:" + "0123456789abcdef" * 4


def container(id_: str, image: str, at: int, **labels: str) -> dict[str, Any]:
    times = {"created_at": at * 10**9, "updated_at": at * 10**9}
    kept = {"runtime": "runc", "snapshotter": "overlayfs", "snapshot_key": id_, "labels": labels}
    return {"id": id_, "image": image, **kept, **times}


def task(id_: str, image: str, at: int, status: str, code: int | None = None) -> dict[str, Any]:
    times = {"created_at": at * 10**9, "started_at": at * 10**9}
    exited_at = None if code is None else (at + 1) * 10**9
    ended = {"exit_status": code, "exited_at": exited_at, "cause": "", "reason": ""}
    return {"id": id_, "pid": 42, "status": status, "image": image, **times, **ended}


CONTAINERS = [
    container("db", "docker.io/library/postgres:16", 1, tier="data"),
    container("old", "docker.io/library/nginx:1.27", 2, tier="web"),
    container("web", "docker.io/library/nginx:1.27", 3, tier="web", zone="eu\tx"),
    container("web2", f"reg:5000/site@{DIGEST}", 4, tier="web", zone="us"),
    container("new", "docker.io/library/busybox:test", 5),
]
TASKS = [
    task("db", "docker.io/library/postgres:16", 1, "running"),
    task("old", "docker.io/library/nginx:1.27", 2, "stopped", 3),
    task("web", "docker.io/library/nginx:1.27", 3, "paused"),
    task("web2", f"reg:5000/site@{DIGEST}", 4, "running"),
]


@pytest.fixture
def listed(manager: FakeManager, ctl: Ctl) -> Ctl:
    manager.on("tasks.list", {"tasks": TASKS})
    manager.on("containers.list", {"containers": CONTAINERS, "next": None})
    return ctl


def ids(ctl: Ctl, *words: str) -> list[str]:
    done = ctl(*words, "-q")
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ps"], ["db", "web", "web2"]),
        (["ps", "-a"], ["db", "old", "web", "web2", "new"]),
        (["ps", "-f", "name=eb"], ["web", "web2"]),
        (["ps", "-f", "name=^web$"], ["web"]),
        (["ps", "-f", "name=^/web$"], ["web"]),
        (["ps", "-f", "id=web"], ["web", "web2"]),
        (["ps", "-f", "name=db", "-f", "name=web2"], ["db", "web2"]),
        (["ps", "-f", "label=tier=web"], ["web", "web2"]),
        (["ps", "-f", "label=tier", "-f", "label=zone=us"], ["web2"]),
        (["ps", "-a", "-f", "label=tier=web"], ["old", "web", "web2"]),
        (["ps", "-f", "status=exited"], ["old"]),
        (["ps", "-f", "status=stopped", "-f", "status=paused"], ["old", "web"]),
        (["ps", "-f", "status=created"], ["new"]),
        (["ps", "-f", "exited=3"], ["old"]),
        (["ps", "-f", "exited=0"], []),
        (["ps", "-f", "ancestor=nginx:1.27"], ["web"]),
        (["ps", "-f", "ancestor=docker.io/library/nginx"], ["web"]),
        (["ps", "-f", "before=web"], ["db"]),
        (["ps", "-f", "since=old"], ["web", "web2"]),
        (["ps", "-f", "label=tier=web", "-f", "name=2"], ["web2"]),
        (["ls", "-f", "label=tier"], ["db", "old", "web", "web2"]),
        (["ls", "-f", "status=running"], ["db", "web2"]),
    ],
)
def test_filters_choose(listed: Ctl, words: list[str], wanted: list[str]) -> None:
    assert ids(listed, *words) == wanted


def test_what_waits_for_its_restart_has_not_exited(listed: Ctl, manager: FakeManager) -> None:
    waits = {**task("db", "postgres", 1, "stopped", 3), "restart_at": 9 * 10**18}
    manager.on("tasks.list", {"tasks": [waits, *TASKS[1:]]})
    assert ids(listed, "ps", "-f", "status=exited") == ["old"]
    assert ids(listed, "ps", "-f", "exited=3") == ["old"]
    assert ids(listed, "ps", "-f", "status=restarting") == ["db"]
    assert ids(listed, "ps", "-f", "status=stopped") == ["db", "old"]
    shown = listed("ps", "-a", "--format", "{{.Names}} {{.State}}").stdout.decode().splitlines()
    states = ["db restarting", "old exited", "web paused", "web2 running", "new created"]
    assert shown == states


@pytest.mark.parametrize(
    "words",
    [
        ["-f", "nothing"],
        ["-f", "colour=red"],
        ["-f", "status=dead"],
        ["-f", "exited=x"],
        ["-f", "name=("],
        ["-f", "before=nobody"],
        ["--format", "{{.Nothing}}"],
        ["--format", "{{.ID"],
        ["--format", "{{shell .ID}}"],
        ["--format", "{{json .Nothing}}"],
    ],
)
def test_what_is_not_understood_is_wrong_usage(listed: Ctl, words: list[str]) -> None:
    done = listed("ps", *words)
    assert done.returncode == 2
    assert done.stdout == b""
    assert (b"--filter" if words[0] == "-f" else b"--format") in done.stderr


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{.ID}} {{.Names}}", "web web"),
        ("{{ .Image }}", "docker.io/library/nginx:1.27"),
        ("{{.Pid}}:{{.State}}", "42:paused"),
        ("{{.CreatedAt}}", "1970-01-01T00:00:03Z"),
        ('{{.Label "tier"}}/{{.Label "none"}}', "web/"),
        ("{{.Labels}}", "tier=web,zone=eu\\tx"),
        ("{{upper .Names}}{{lower .State}}", "WEBpaused"),
        ("{{json .Labels}}", '"tier=web,zone=eu\\tx"'),
        ("a\\tb{{.ID}}", "a\tbweb"),
    ],
)
def test_a_template_prints_a_line_for_each(listed: Ctl, template: str, line: str) -> None:
    done = listed("ps", "-f", "name=^web$", "--format", template)
    assert done.stdout.decode() == line + "\n"


def test_a_whole_row_as_json_has_dockers_words(listed: Ctl) -> None:
    lines = listed("ps", "--no-trunc", "--format", "{{json .}}").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["Names"] for row in rows] == ["db", "web", "web2"]
    assert rows[2]["Image"] == f"reg:5000/site@{DIGEST}"
    assert rows[0]["Labels"] == "tier=data" and rows[0]["Status"].startswith("Up ")
    assert {"ID", "Image", "Names", "State", "Status", "CreatedAt", "RunningFor"} <= rows[0].keys()


def test_a_table_of_a_template_has_a_header(listed: Ctl) -> None:
    template = 'table {{.Names}}\\t{{.Image}}\\t{{.Label "zone"}}'
    lines = listed("ps", "--format", template).stdout.decode().splitlines()
    assert lines[0].split() == ["NAMES", "IMAGE", "ZONE"]
    assert lines[3].split() == ["web2", "reg:5000/site@sha256:0123456789ab", "us"]
    assert [line.index("reg") for line in lines if "reg" in line] == [lines[0].index("IMAGE")]
    assert listed("ls", "--format", "table {{.ID}}\\t{{.Runtime}}").stdout.split()[:3] == [
        *(b"CONTAINER", b"ID", b"RUNTIME")
    ]


def test_digests_are_cut_unless_all_is_wanted(listed: Ctl) -> None:
    short = listed("ps", "-a").stdout.decode()
    assert "@sha256:0123456789ab " in short and DIGEST not in short
    assert DIGEST in listed("ps", "-a", "--no-trunc").stdout.decode()


def test_json_is_an_array_wherever_it_is_asked_for(listed: Ctl) -> None:
    for words in (["--format", "json", "ps"], ["ps", "--format", "json"]):
        assert [row["id"] for row in json.loads(listed(*words).stdout)] == ["db", "web", "web2"]
    assert os.linesep.encode() in listed("ps").stdout


def test_a_row_has_one_shape_with_all_and_without(listed: Ctl, manager: FakeManager) -> None:
    orphan = task("lost", "i", 6, "running")
    manager.on("tasks.list", {"tasks": [*TASKS, orphan]})
    some = json.loads(listed("ps", "--format", "json").stdout)
    everything = json.loads(listed("ps", "-a", "--format", "json").stdout)
    assert [row["id"] for row in some] == ["db", "web", "web2", "lost"]
    assert some[:3] == [row for row in everything if row["status"] in ("running", "paused")]
    assert (some[0]["labels"], some[0]["runtime"]) == ({"tier": "data"}, "runc")
    assert some[3].keys() == some[0].keys()


def test_labels_are_set_and_shown(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("containers.label", {"container": container("web", "i", 1, a="1", b="2")})
    done = ctl("containers", "label", "web", "a=1", "gone=")
    assert done.stdout == b"a=1,b=2\n"
    assert manager.asked("containers.label").body == {
        "id": "web",
        "labels": {"a": "1", "gone": ""},
    }
    assert ctl("containers", "label", "web").returncode == 2
