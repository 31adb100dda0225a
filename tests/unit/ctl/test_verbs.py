"""Grammar, requests, exit codes: what a command line asks for, and what it ends with."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.ctl.cli import ctl as root
from lighter.ctl.grammar import Command, Group
from lighter.ctl.reading import read
from lighter.ctl.resolve import AT_ONCE
from lighter.daemon.rpc.owners import GUARDED
from lighter.proto.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tests.fakes.manager import HOLD, Ask, FakeManager, FakeProcess
from tests.unit.ctl.conftest import CTL, Ctl, Start

VERSION = {
    "name": "lighter",
    "version": "9.8.7",
    "revision": "abc",
    "uuid": "11111111-2222",
    "generation": 1,
    "started_at": 1_000_000_000,
}
TASK = {
    "id": "c1",
    "pid": 42,
    "status": "running",
    "image": "busybox",
    "exit_status": None,
    "exited_at": None,
    "cause": "",
    "reason": "",
    "created_at": 1_000_000_000,
    "started_at": 1_000_000_000,
}


def created(ask: Ask) -> dict[str, Any]:
    return {"id": ask.body["id"] or "made-up", "warnings": []}


def playing(manager: FakeManager, output: bytes = b"", code: int = 0, cause: str = "") -> None:
    """Answers of a container that writes `output` and ends with `code`."""
    processes: list[FakeProcess] = []

    def create(ask: Ask) -> Any:
        processes.append(FakeProcess(ask.body))
        return {"pid": 42}

    def start(ask: Ask) -> Any:
        process = processes.pop()

        def live() -> None:
            if output:
                process.write(output)
            process.end()
            end = {"exit_status": code, "exited_at": 1, "cause": cause}
            manager.asked("tasks.wait").reply(end)

        threading.Thread(target=live).start()
        return {"pid": 42}

    manager.on("containers.create", created)
    manager.on("tasks.create", create)
    manager.on("tasks.wait", HOLD)
    manager.on("tasks.start", start)
    manager.on("tasks.close_stdin", {})
    manager.on("tasks.delete", {"exit_status": code, "exited_at": 1, "cause": ""})


def playing_detached(manager: FakeManager) -> None:
    manager.on("containers.create", created)
    manager.on("tasks.create", {"pid": 42})
    manager.on("tasks.start", {"pid": 42})


def test_version_says_who_answers(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("version.get", VERSION)
    done = ctl("version")
    assert done.returncode == 0
    assert b"Client:" in done.stdout
    assert b"9.8.7" in done.stdout
    assert b"11111111-2222" in done.stdout
    hello = manager.hellos.get(timeout=20)
    assert hello.version == 1
    assert hello.identity["kind"] == "client"


def test_version_in_json_is_an_object(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("version.get", VERSION)
    for args in (("--format", "json", "version"), ("version", "--format", "json")):
        shown = json.loads(ctl(*args).stdout)
        assert shown["server"]["started_at"] == "1970-01-01T00:00:01Z"


def test_without_a_common_version_nothing_is_asked(socket_path: str, ctl: Ctl) -> None:
    with FakeManager(socket_path, versions=(7, 8)) as manager:
        done = ctl("version")
        assert done.returncode == 1
        assert b"[7, 8]" in done.stderr
        assert manager.hellos.get(timeout=20).version == 0
        assert not manager.was_asked("version.get")


@pytest.mark.parametrize(
    ("args", "environ", "namespace"),
    [
        ((), {}, "default"),
        (("-n", "a"), {"CONTAINERD_NAMESPACE": "b"}, "a"),
        ((), {"CONTAINERD_NAMESPACE": "b"}, "b"),
        ((), {"LIGHTER_NAMESPACE": "c", "CONTAINERD_NAMESPACE": "b"}, "c"),
    ],
)
def test_the_namespace_travels(
    manager: FakeManager, ctl: Ctl, args: tuple[str, ...], environ: dict[str, str], namespace: str
) -> None:
    manager.on("tasks.list", {"tasks": []})
    assert ctl(*args, "t", "ls", env=environ).stdout == b"TASK    PID    STATUS\n"
    assert manager.asked("tasks.list").namespace == namespace


@pytest.mark.parametrize("words", ["pull host.example/a", "run --pull always host.example/a x"])
def test_an_image_is_unpacked_where_the_container_will_stand(
    manager: FakeManager, ctl: Ctl, words: str
) -> None:
    manager.on("images.pull", FailedPrecondition("enough"))
    done = ctl(*words.split(), env={"LIGHTER_SNAPSHOTTER": "native"})
    assert done.stderr.endswith(b"ctl: enough\n")
    assert manager.asked("images.pull").body["snapshotter"] == "native"


def test_a_list_comes_in_pages(manager: FakeManager, ctl: Ctl) -> None:
    def page(ask: Ask) -> Any:
        row = {"id": ask.body["cursor"] or "first", "image": "i", "runtime": "r"}
        return {"containers": [row], "next": None if ask.body["cursor"] else "second"}

    manager.on("containers.list", page)
    assert ctl("c", "ls", "-q").stdout == b"first\nsecond\n"


def test_tasks_as_a_table_and_as_json(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("tasks.list", {"tasks": [TASK]})
    assert ctl("tasks", "list").stdout.splitlines()[1].split() == [b"c1", b"42", b"RUNNING"]
    (row,) = json.loads(ctl("--format", "json", "task", "ls").stdout)
    assert (row["status"], row["exited_at"]) == ("running", None)
    assert row["created_at"] == "1970-01-01T00:00:01Z"


# grammar of run


@pytest.mark.parametrize(
    ("words", "container_id", "args"),
    [
        (["busybox", "c1"], "c1", []),
        (["busybox", "c1", "sh", "-c", "exit"], "c1", ["sh", "-c", "exit"]),
        (["--name", "c1", "busybox", "sh", "-c", "x"], "c1", ["sh", "-c", "x"]),
        (["-i", "busybox", "cat"], None, ["cat"]),
    ],
)
def test_run_has_two_spellings(
    manager: FakeManager, ctl: Ctl, words: list[str], container_id: str | None, args: list[str]
) -> None:
    playing_detached(manager)
    done = ctl("run", "-d", *words)
    assert done.returncode == 0, done.stderr
    body = manager.asked("containers.create").body
    assert (body["image"], body["id"], body["args"]) == ("busybox", container_id, args)
    assert body["keep_entrypoint"] == (container_id is None or "--name" in words)
    assert body["as_docker"] == body["keep_entrypoint"]
    stdio = manager.asked("tasks.create").body
    assert (stdio["stdin"], stdio["stdout"], stdio["stderr"]) == ("", "", "")
    as_docker = words[0].startswith("-")
    assert done.stdout.decode() == (f"{container_id or 'made-up'}\n" if as_docker else "")


def test_run_with_an_image_alone_shows_both_spellings(ctl: Ctl) -> None:
    done = ctl("run", "busybox")
    assert done.returncode == 2
    assert b"ctl run busybox ID" in done.stderr
    assert b"ctl run --name ID busybox" in done.stderr


def test_run_flags_reach_the_manager(manager: FakeManager, ctl: Ctl, tmp_path: Path) -> None:
    playing_detached(manager)
    flags = "-d --rm -t -e A=1 -w /w -u 1:2 --net-host --read-only --label k=v --hostname h"
    more = "--privileged --privileged-without-host-devices --cap-add CAP_X --cap-drop ALL"
    more += " --allow-new-privs --with-ns pid:/p"
    logs = "--seccomp-profile unconfined --log-driver none --log-max-size 1k --stop-signal INT"
    pid_file = tmp_path / "pid"
    words = [*flags.split(), *more.split(), *logs.split(), "--entrypoint", ""]
    mount = ["--mount", "src=data,dst=/d", "--pid-file", str(pid_file)]
    assert ctl("run", *words, *mount, "busybox", "c1", cwd=str(tmp_path)).returncode == 0
    body = manager.asked("containers.create").body
    wanted = {
        "auto_remove": True,
        "terminal": True,
        "env": ["A=1"],
        "cwd": "/w",
        "user": "1:2",
        "net_host": True,
        "read_only": True,
        "labels": {"k": "v"},
        "hostname": "h",
        "privileged": True,
        "without_host_devices": True,
        "cap_add": ["CAP_X"],
        "cap_drop": ["ALL"],
        "allow_new_privs": True,
        "with_ns": {"pid": "/p"},
        "seccomp": "unconfined",
        "log": {"driver": "none", "max_size": 1024, "uri": ""},
        "stop_signal": "INT",
        "entrypoint": [],
    }
    assert {name: body[name] for name in wanted} == wanted
    assert body["mounts"][0]["source"] == f"{tmp_path}/data"
    assert pid_file.read_text() == "42"


def test_create_takes_flags_after_the_id_and_leaves_the_commands_own(
    manager: FakeManager, ctl: Ctl
) -> None:
    manager.on("containers.create", created)
    mount = "type=bind,src=/tmp,dst=/hostdir,options=rbind:rw"
    done = ctl("c", "create", "busybox", "c1", "--mount", mount, "--net-host", "sh", "-c", "x")
    assert done.returncode == 0, done.stderr
    body = manager.asked("containers.create").body
    assert (body["id"], body["args"], body["net_host"]) == ("c1", ["sh", "-c", "x"], True)
    assert body["mounts"][0]["destination"] == "/hostdir"
    assert ctl("c", "create", "busybox", "c1", "--", "--net-host").returncode == 0
    body = manager.asked("containers.create").body
    assert (body["args"], body["net_host"]) == (["--net-host"], False)


@pytest.mark.parametrize(
    "words",
    [
        ["c", "create"],
        ["c", "create", "busybox"],
        ["c", "create", "busybox", "c1", "--nonsense"],
        ["run", "--mount", "colour=red,dst=/d", "busybox", "c1"],
        ["run", "--no-such-flag", "busybox", "c1"],
        ["run", "--privileged-without-host-devices", "busybox", "c1"],
        ["kill", "-s", "NONE", "c1"],
        ["nonsense"],
        ["tasks", "nonsense"],
        ["--timeout", "soon", "version"],
        ["exec", "c1"],
    ],
)
def test_wrong_usage_is_2_and_asks_nobody(ctl: Ctl, words: list[str]) -> None:
    done = ctl(*words)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_stray_words_after_start_warn(manager: FakeManager, ctl: Ctl) -> None:
    playing_detached(manager)
    done = ctl("tasks", "start", "-d", "box", "bash")
    assert done.returncode == 0
    assert b"warning" in done.stderr
    assert b"bash" in done.stderr
    assert manager.asked("tasks.create").body["id"] == "box"


@pytest.mark.parametrize(
    ("words", "signal"), [(["t", "kill"], 15), (["kill"], 9), (["kill", "-s", "hup"], 1)]
)
def test_default_signals(manager: FakeManager, ctl: Ctl, words: list[str], signal: int) -> None:
    manager.on("tasks.kill", {})
    assert ctl(*words, "c1").returncode == 0
    assert manager.asked("tasks.kill").body["signal"] == signal


def test_every_command_has_help(ctl: Ctl) -> None:
    groups = {
        "containers": ["info", "label"],
        "images": ["import"],
        "tasks": ["exec"],
        "namespaces": ["ls"],
        "system": ["shims"],
    }
    verbs = "version events logs exec attach kill stop pause resume ps ls rm inspect"
    lines = [[], *([verb] for verb in verbs.split()), *([group] for group in groups)]
    lines += [[group, verb] for group, verbs in groups.items() for verb in verbs]
    for words in lines:
        done = ctl(*words, "-h")
        assert done.returncode == 0, (words, done.stderr)
        assert b"Usage:" in done.stdout
        assert b"\n    ctl " in done.stdout, words
        assert ctl("help", *words).stdout.startswith(b"Usage:")


@pytest.mark.parametrize(
    "words", [("run", "--name", "x"), ("create", "--name", "x"), ("containers", "create")]
)
def test_h_is_a_hostname_where_a_container_is_made(
    manager: FakeManager, ctl: Ctl, words: tuple[str, ...]
) -> None:
    """As docker has it."""
    manager.on("containers.create", FailedPrecondition("enough"))
    assert ctl(*words, "-h", "front", "busybox", "x").stderr == b"ctl: enough\n"
    assert manager.asked("containers.create").body["hostname"] == "front"
    shown = ctl(*words, "--help")
    assert shown.returncode == 0 and b"-h, --hostname TEXT" in shown.stdout
    assert b"-h, --help" not in shown.stdout
    wrong = ctl(*words, "--nothing", "x", "y")
    assert wrong.returncode == 2 and b" --help' for help" in wrong.stderr


def all_commands(group: Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    for name in group.names():
        command = group.find(name)
        assert command is not None
        yield " ".join((*words, name)), command
        if isinstance(command, Group):
            yield from all_commands(command, (*words, name))


def examples(command: Command) -> list[list[str]]:
    """What follows `ctl` in its help's examples, up to where the shell takes over."""
    text = (command.callback.__doc__ or "").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    found = []
    for line in lines:
        if line.startswith("ctl "):
            words = shlex.split(line, comments=True)[1:]
            stop = [n for n, word in enumerate(words) if word in ("|", "&&", "<", ">")]
            found.append(words[: stop[0]] if stop else words)
    return found


def test_every_command_has_an_example_that_can_be_read() -> None:
    seen = 0
    for name, command in all_commands(root):
        lines = examples(command)
        assert lines, f"ctl {name} has no example"
        for words in lines:
            assert read(root, words) is not None, f"ctl {name}: {' '.join(words)}"
            seen += 1
    assert seen > 150


def test_every_verb_takes_the_snapshotter_of_the_environment() -> None:
    """Else one unpacks to where another does not look."""
    taken = {
        name: option.envvar
        for name, command in all_commands(root)
        for option in command.parameters
        if "--snapshotter" in option.names
    }
    # These look at all, and take the group's.
    assert [taken.pop(name) for name in ("content why", "snapshots unpack")] == [[], []]
    assert {"run", "pull", "images pull", "images import", "images usage"} <= taken.keys()
    assert all(said == ["LIGHTER_SNAPSHOTTER", "CONTAINERD_SNAPSHOTTER"] for said in taken.values())


# Verbs that ask for what is refused in another program's namespace; the refusal names --force.
FORCED = {
    "containers.start": "start",
    "containers.restart": "restart",
    "containers.update": "update",
    "containers.rename": "rename",
    "containers.delete": "rm, containers delete",
    "containers.forget": "containers delete",
    "containers.label": "containers label",
    "containers.checkpoint": "containers checkpoint, tasks checkpoint",
    "tasks.create": "start",
    "tasks.kill": "kill, tasks kill",
    "tasks.stop": "stop",
    "tasks.pause": "pause, tasks pause",
    "tasks.resume": "resume, tasks resume",
    "tasks.delete": "rm, containers delete, tasks delete, shim delete",
    "tasks.checkpoint": "tasks checkpoint",
    "networks.connect": "network connect",
    "networks.disconnect": "network disconnect",
    "images.delete": "rmi, images delete, images prune",
    "images.label": "images label",
    "namespaces.delete": "namespaces remove",
    "namespaces.label": "namespaces label",
    "content.delete": "content delete",
    "content.label": "content label",
    "content.abort": "content abort",
    "content.prune_references": "content prune references",
    "leases.delete": "leases delete",
    "leases.delete_resource": "",  # of programs alone
    "snapshots.delete": "snapshots remove",
    "snapshots.commit": "snapshots commit",
    "snapshots.label": "snapshots label",
}


def test_what_is_refused_without_force_can_be_forced() -> None:
    assert FORCED.keys() == GUARDED
    commands = dict(all_commands(root))
    verbs = {verb for verbs in FORCED.values() for verb in verbs.split(", ") if verb}
    flags = {
        verb: [name for one in commands[verb].parameters for name in one.names] for verb in verbs
    }
    assert not [verb for verb in verbs if "--force" not in flags[verb]]


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (("start", "--force"), "containers.start"),
        (("rm", "-f"), "containers.delete"),
        (("containers", "rm", "-f", "--keep-snapshot"), "containers.forget"),
    ],
)
def test_force_travels(manager: FakeManager, ctl: Ctl, words: tuple[str, ...], method: str) -> None:
    manager.on(method, {})
    assert ctl(*words, "c1").returncode == 0
    assert manager.asked(method).forced


# exit codes and errors


@pytest.mark.parametrize("error", [Unavailable("stuck"), DeadlineExceeded("stuck")])
def test_a_container_that_is_stuck_leaves_the_others_their_turn(
    manager: FakeManager, ctl: Ctl, error: LighterError
) -> None:
    manager.on("tasks.stop", lambda ask: error if ask.body["id"] == "b" else {})
    done = ctl("stop", "a", "b", "c")
    assert (done.returncode, done.stdout) == (1, b"a\nc\n")
    assert done.stderr == b"ctl: stuck\n"


@pytest.mark.parametrize(
    ("words", "method", "key"),
    [
        (("containers", "rm"), "containers.delete", "id"),
        (("tasks", "rm"), "tasks.delete", "id"),
        (("namespaces", "rm"), "namespaces.delete", "name"),
        (("leases", "rm"), "leases.delete", "id"),
    ],
)
def test_long_forms_work_through_all_names(
    manager: FakeManager, ctl: Ctl, words: tuple[str, ...], method: str, key: str
) -> None:
    manager.on(method, lambda ask: NotFound("no b") if ask.body[key] == "b" else {})
    done = ctl(*words, "a", "b", "c")
    assert (done.returncode, done.stderr) == (1, b"ctl: no b\n")
    assert [manager.asked(method).body[key] for _ in "abc"] == ["a", "b", "c"]
    shown = b"" if words[0] in ("containers", "tasks") else b"a\nc\n"
    assert done.stdout == shown


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (("stop",), "tasks.stop"),
        (("kill",), "tasks.kill"),
        (("rm", "-f"), "containers.delete"),
    ],
)
def test_many_containers_are_ended_at_once(
    manager: FakeManager, start: Start, words: tuple[str, ...], method: str
) -> None:
    """And told of in the order of the words; one that is there twice has its second turn later."""
    names = [f"c{number}" for number in range(AT_ONCE + 2)]
    manager.on(method, HOLD)
    running = start(*words, *names, "c0")
    asks = [manager.asked(method) for _ in range(AT_ONCE)]
    assert [ask.body["id"] for ask in asks] == names[:AT_ONCE]
    assert not manager.was_asked(method)
    for ask in reversed(asks[1:]):
        ask.reply(FailedPrecondition("no c1") if ask.body["id"] == "c1" else {})
    manager.on("tasks.get", {"task": {"restart_at": 1}})  # for a removal that was refused
    asks[0].reply({})
    later = [manager.asked(method) for _ in range(3)]
    assert [ask.body["id"] for ask in later] == [*names[AT_ONCE:], "c0"]
    for ask in later:
        ask.reply({})
    out, err = running.communicate(timeout=20)
    assert (running.returncode, err) == (1, b"ctl: no c1\n")
    assert out.decode().split() == ["c0", *names[2:], "c0"]


@pytest.mark.parametrize(
    ("words", "method", "answer", "shown"),
    [
        ("inspect --type network -f {{.Name}}", "networks.get", "network", "a\nc\n"),
        ("volume inspect --format {{.Name}}", "volumes.get", "volume", "a\nc\n"),
        ("network inspect", "networks.get", "network", None),
        ("--format json images inspect", "images.get", None, None),
        ("images tag source", "images.tag", None, "a\nc\n"),
        ("snapshots rm", "snapshots.delete", None, "a\nc\n"),
        ("content abort", "content.abort", None, "a\nc\n"),
    ],
)
def test_one_that_is_missing_does_not_keep_the_others(
    manager: FakeManager, ctl: Ctl, words: str, method: str, answer: str | None, shown: str | None
) -> None:
    def look(ask: Ask) -> Any:
        name = next(ask.body[key] for key in ("id", "name", "key", "ref") if key in ask.body)
        row = {"id": name, "name": name, "spec": "{}", "containers": [], "labels": {}}
        return NotFound("no b") if name == "b" else {answer: row} if answer else row

    manager.on(method, look)
    done = ctl(*words.split(), "a", "b", "c")
    assert (done.returncode, done.stderr) == (1, b"ctl: no b\n")
    if shown is None:
        assert done.stdout.count(b'"id"') == 2
    else:
        assert done.stdout.decode() == shown


def test_volumes_that_are_there_are_shown_as_one_array(manager: FakeManager, ctl: Ctl) -> None:
    row = {"created_at": 1, "mountpoint": "/m", "labels": {}, "anonymous": False, "containers": []}
    manager.on(
        "volumes.get",
        lambda ask: (
            NotFound("no b")
            if ask.body["name"] == "b"
            else {"volume": {**row, "name": ask.body["name"]}}
        ),
    )
    done = ctl("volume", "inspect", "a", "b", "c")
    assert (done.returncode, done.stderr) == (1, b"ctl: no b\n")
    assert [one["Name"] for one in json.loads(done.stdout)] == ["a", "c"]
    assert json.loads(ctl("volume", "inspect", "b").stdout) == []


@pytest.mark.parametrize("flags", [("--cpus", "0"), ("-m", "0"), ("--cpuset-cpus", "")])
def test_an_update_that_changes_nothing_is_wrong_usage(ctl: Ctl, flags: tuple[str, ...]) -> None:
    done = ctl("update", *flags, "web")
    assert done.returncode == 2 and b"changes nothing" in done.stderr


def test_f58_a_stop_of_all_asks_again_while_there_is_no_room(
    manager: FakeManager, ctl: Ctl
) -> None:
    """By a connection of its own each time: one that was refused stays so."""
    refusal = ResourceExhausted("connect: 256 clients are connected already; try again")

    def answer(ask: Ask) -> object:
        if manager.hellos.qsize() < 3:
            return refusal
        ask.items([{"namespace": "default", "id": "a", "exit_status": 9, "error": ""}])
        return {"stopped": 1, "failed": 0}

    manager.on("system.stop_containers", answer)
    done = ctl("system", "stop-containers", "--timeout", "60s")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"stopped default/a (exit status 9)\n"
    asked = [manager.asked("system.stop_containers").body["timeout_s"] for _ in range(3)]
    assert asked[0] == 60 > asked[1] > asked[2] > 0
    manager.on("system.stop_containers", refusal)
    done = ctl("system", "stop-containers", "--timeout", "0s")
    assert done.returncode == 1 and b"256 clients" in done.stderr


def test_when_the_time_is_over_nobody_else_is_asked(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("tasks.pause", HOLD)
    done = ctl("--timeout", "2s", "pause", "a", "b")
    assert (done.returncode, done.stdout) == (124, b"")
    assert manager.asked("tasks.pause").body["id"] == "a"
    assert not manager.was_asked("tasks.pause")


def test_an_attached_run_ends_with_the_processs_code_and_all_its_output(
    manager: FakeManager, ctl: Ctl
) -> None:
    output = os.urandom(3_000_000)
    playing(manager, output, code=42)
    done = ctl("run", "busybox", "c1", "x")
    assert (done.returncode, done.stderr) == (42, b"")
    assert done.stdout == output
    assert manager.asked("tasks.delete").body["force"] is False


def test_the_cause_of_an_odd_end_is_told(manager: FakeManager, ctl: Ctl) -> None:
    playing(manager, code=137, cause="lost-shim")
    done = ctl("run", "--rm", "busybox", "c1")
    assert done.returncode == 137
    assert b"lost-shim" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FailedPrecondition("run c1: no"), 125),
        (InvalidArgument("run c1: cannot", exit_code=126), 126),
        (NotFound("run c1: none", exit_code=127), 127),
    ],
)
def test_a_refused_run_leaves_no_container(
    manager: FakeManager, ctl: Ctl, error: Exception, code: int
) -> None:
    manager.on("containers.create", created)
    manager.on("tasks.create", error)
    manager.on("containers.delete", {})
    done = ctl("run", "busybox", "c1")
    assert (done.returncode, done.stderr.decode()) == (code, f"ctl: {error}\n")
    body = {"id": "c1", "force": True, "volumes": True}
    assert manager.asked("containers.delete").body == body


@pytest.mark.parametrize("verb", ["run", "create"])
def test_a_container_that_cannot_be_defined_is_refused_as_by_the_manager(
    manager: FakeManager, ctl: Ctl, verb: str
) -> None:
    done = ctl(verb, "--env-file", "/nosuch", "busybox", "c1")
    assert (done.returncode, done.stderr.count(b"\n")) == (125, 1)
    assert b"read env file /nosuch: No such file" in done.stderr


@pytest.mark.parametrize("detached", [(), ("-d",)])
def test_a_run_that_cannot_write_its_pid_is_taken_back_as_refused(
    manager: FakeManager, ctl: Ctl, detached: tuple[str, ...]
) -> None:
    for method, answer in (("containers.create", created), ("tasks.create", {"pid": 42})):
        manager.on(method, answer)
    manager.on("tasks.delete", {})
    manager.on("containers.delete", {})
    done = ctl("run", *detached, "--pid-file", "/nosuch/pid", "busybox", "c1")
    said = b"ctl: write pid file /nosuch/pid: No such file or directory\n"
    assert (done.returncode, done.stderr) == (125, said)
    assert manager.asked("containers.delete").body["id"] == "c1"
    assert not manager.was_asked("tasks.start")


def test_a_terminal_is_typed_at_from_a_terminal(manager: FakeManager, ctl: Ctl) -> None:
    """As docker has it: a pipe's end would not end what reads from the terminal."""
    spec = json.dumps({"process": {"terminal": True}})
    manager.on("containers.resolve", lambda ask: {"id": ask.body["ref"]})
    manager.on("containers.get", {"container": {"id": "c1", "spec": spec}})
    exec_ = ("exec", "-it", "c1", "sh")
    for words in (("run", "-it", "busybox", "sh"), exec_, ("start", "-ai", "c1")):
        done = ctl(*words, input=b"exit 3\n")
        said = f"ctl: {words[0]}: the input device is not a TTY".encode()
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(said) and done.stderr.count(b"\n") == 1, done.stderr
    for method in ("containers.create", "tasks.create", "tasks.exec"):
        assert not manager.was_asked(method)
    manager.on("containers.create", created)
    manager.on("tasks.create", {"pid": 1})
    manager.on("tasks.start", {})
    assert ctl("run", "-itd", "busybox", "sh").returncode == 0, "nothing is passed on"


def test_a_container_that_was_there_before_is_left_alone(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("containers.create", FailedPrecondition("create c1: it exists"))
    manager.on("containers.delete", {})
    assert ctl("run", "busybox", "c1").returncode == 125
    assert not manager.was_asked("containers.delete")


def test_a_failure_is_one_line_and_1(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("tasks.pause", FailedPrecondition("pause c1: it is \x1bstopped"))
    done = ctl("tasks", "pause", "c1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"ctl: pause c1: it is \\x1bstopped\n"


def test_a_timeout_is_124_and_travels_as_a_deadline(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("tasks.wait", HOLD)
    done = ctl("--timeout", "1500ms", "tasks", "wait", "c1")  # long enough to ask on a busy machine
    assert done.returncode == 124
    assert manager.asked("tasks.wait").deadline_ns is not None
    manager.on("containers.resolve", lambda ask: {"id": ask.body["ref"]})
    manager.on("content.delete", HOLD)
    for many in (("wait", "a", "b"), ("content", "delete", "sha256:a", "sha256:b")):
        done = ctl("--timeout", "300ms", *many)
        assert (done.returncode, done.stderr.count(b"\n")) == (124, 1), many


@pytest.mark.parametrize("timeout", [(), ("--timeout", "1h")], ids=["without a timeout", "in time"])
def test_the_deadlines_of_others_are_failures(
    manager: FakeManager, ctl: Ctl, timeout: tuple[str, ...]
) -> None:
    hung = DeadlineExceeded("pause c1: runc pause: no answer within 120 s")
    manager.on("tasks.pause", hung)
    done = ctl(*timeout, "tasks", "pause", "c1")
    assert (done.returncode, done.stderr.decode()) == (1, f"ctl: {hung}\n")
    manager.on("containers.create", created)
    manager.on("tasks.create", hung)
    manager.on("containers.delete", {})
    assert ctl(*timeout, "run", "busybox", "c1").returncode == 125


def test_a_run_that_times_out_before_it_starts_is_taken_back(
    manager: FakeManager, ctl: Ctl
) -> None:
    manager.on("containers.create", created)
    manager.on("tasks.create", HOLD)
    manager.on("containers.delete", {})
    assert ctl("--timeout", "500ms", "run", "busybox", "c1").returncode == 124
    assert manager.asked("containers.delete").body["id"] == "c1"


def test_short_verbs_take_a_unique_beginning(manager: FakeManager, ctl: Ctl) -> None:
    def pause(ask: Ask) -> Any:
        return {} if ask.body["id"] == "abcdef012345" else NotFound("pause: no such task")

    manager.on("tasks.pause", pause)
    manager.on("containers.resolve", {"id": "abcdef012345"})
    done = ctl("pause", "abc")
    assert (done.returncode, done.stdout) == (0, b"abcdef012345\n"), "who is meant is told"
    assert ctl("tasks", "pause", "abc").returncode == 1


@pytest.mark.parametrize(
    "words", [("rm",), ("containers", "rm"), ("containers", "rm", "--keep-snapshot")]
)
def test_a_refused_removal_leaves_the_ended_task(
    manager: FakeManager, ctl: Ctl, words: tuple[str, ...]
) -> None:
    """It is started again soon; its exit code is nobody's to forget."""
    refused = FailedPrecondition("delete container c1: it is being started again; stop it first")
    manager.on("containers.delete", refused)
    manager.on("containers.forget", refused)
    manager.on("tasks.delete", {"exit_status": 1, "exited_at": 1, "cause": ""})
    manager.on("tasks.get", {"task": {**TASK, "status": "stopped", "restart_at": 2}})
    done = ctl(*words, "c1")
    assert (done.returncode, done.stderr) == (1, f"ctl: {refused.message}\n".encode())
    assert not manager.was_asked("tasks.delete")
    manager.on("tasks.get", {"task": {**TASK, "status": "stopped", "restart_at": None}})
    assert ctl(*words, "c1").returncode == 1
    assert manager.was_asked("tasks.delete")


def test_the_labels_of_an_image_reach_no_terminal(manager: FakeManager, ctl: Ctl) -> None:
    labels = {"labels": {"a": "\x1b[2J\x9b"}}
    manager.on("containers.label", {"container": labels})
    manager.on("content.get", {"content": labels})
    manager.on("snapshots.label", {"snapshot": labels})
    for words in (("containers", "label"), ("content", "label"), ("snapshots", "label")):
        more = ("x=y",) if words[0] != "content" else ()
        assert ctl(*words, "c1", *more).stdout == b"a=\\x1b[2J\\x9b\n"


def test_one_failure_of_many_is_told_and_the_rest_is_done(manager: FakeManager, ctl: Ctl) -> None:
    def stop(ask: Ask) -> Any:
        return FailedPrecondition("stop b: no") if ask.body["id"] == "b" else {}

    manager.on("tasks.stop", stop)
    done = ctl("stop", "-t", "3", "a", "b", "c")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"a\nc\n", b"ctl: stop b: no\n")
    assert manager.asked("tasks.stop").body["timeout_s"] == 3


def test_a_container_may_be_stopped_without_any_hurry(manager: FakeManager, ctl: Ctl) -> None:
    """As docker has it: -1 is no limit."""
    for verb, method in (("stop", "tasks.stop"), ("restart", "containers.restart")):
        manager.on(method, {})
        assert ctl(verb, "-t", "-1", "c1").returncode == 0
        assert manager.asked(method).body["timeout_s"] >= 10 * 365 * 86400


@pytest.mark.parametrize(
    ("words", "code"),
    [(("logs", b"caf\xe9"), 1), (("run", "-e", b"A=caf\xe9", "image", "c1"), 125)],
)
def test_a_word_that_no_message_can_carry_is_told(
    manager: FakeManager, environment: dict[str, str], words: tuple[Any, ...], code: int
) -> None:
    done = subprocess.run([CTL, *words], env=environment, capture_output=True, timeout=20)
    assert done.returncode == code
    assert done.stderr.startswith(b"ctl: call ") and done.stderr.count(b"\n") == 1
    assert done.stderr.endswith(b"caf\\udce9 is not UTF-8\n")


@pytest.mark.parametrize(
    ("words", "method"),
    [(("stop",), "tasks.stop"), (("pause",), "tasks.pause"), (("inspect",), "containers.get")],
)
def test_a_word_that_no_message_can_carry_does_not_keep_the_others(
    manager: FakeManager, environment: dict[str, str], words: tuple[Any, ...], method: str
) -> None:
    """Nor does it break off those that were begun before it."""
    row = {"id": "web", "spec": "{}", "labels": {}}
    manager.on(method, {"container": row})
    manager.on("tasks.get", NotFound("no task"))
    argv: list[Any] = [CTL, *words, "web", b"caf\xe9", "db"]
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.endswith(b"caf\\udce9 is not UTF-8\n")
    if method == "containers.get":
        assert done.stdout.count(b'"spec"') == 2
    else:
        assert done.stdout == b"web\ndb\n"


@pytest.mark.parametrize(
    ("words", "method"), [(("stop",), "tasks.stop"), (("rm", "-f"), "containers.delete")]
)
@pytest.mark.parametrize("restarts", [True, False], ids=["the manager ends", "Ctrl-C"])
def test_what_was_done_meanwhile_is_told_when_the_rest_is_broken_off(
    manager: FakeManager, start: Start, words: tuple[str, ...], method: str, restarts: bool
) -> None:
    manager.on(method, HOLD)
    names = ["first", "stuck", "done", "refused", "gone", "late", "done too"]
    running = start(*words, *names)
    asks = {ask.body["id"]: ask for ask in (manager.asked(method) for _ in names)}
    asks["refused"].reply(Unavailable("refused"))
    asks["gone"].reply(NotFound("gone"))
    for name in ("done too", "done", "first"):
        asks[name].reply({})
    assert running.stdout
    assert running.stdout.readline() == b"first\n"  # by then it has the others' answers
    if restarts:
        manager.restart()
    else:
        running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert out == b"done\ndone too\n"
    if restarts:
        ended = f"ctl: call {method}: the manager ended meanwhile\n".encode()
        assert (running.returncode, err) == (1, b"ctl: refused\n" + ended)
    else:
        assert (running.returncode, err) == (130, b"ctl: refused\n")


def test_waits_that_are_over_are_shown_when_the_others_are_broken_off(
    manager: FakeManager, start: Start
) -> None:
    manager.on("containers.resolve", lambda ask: {"id": ask.body["ref"]})
    manager.on("tasks.wait", HOLD)
    names = [f"c{number}" for number in range(AT_ONCE + 1)]
    running = start("--format", "json", "wait", *names)
    asks = [manager.asked("tasks.wait") for _ in range(AT_ONCE)]
    asks[3].reply(NotFound("no c3"))
    for number in (2, 0):
        asks[number].reply({"exit_status": number, "exited_at": 1})
    manager.asked("tasks.wait")  # in the place of c0: the answers before that are there
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, err) == (130, b"")
    assert [(end["id"], end["exit_status"]) for end in json.loads(out)] == [("c0", 0), ("c2", 2)]


def test_volumes_that_were_looked_at_are_shown_when_the_others_are_broken_off(
    manager: FakeManager, start: Start
) -> None:
    row = {"created_at": 1, "mountpoint": "/m", "labels": {}, "anonymous": False, "containers": []}
    manager.on(
        "volumes.get",
        lambda ask: {"volume": {**row, "name": "a"}} if ask.body["name"] == "a" else HOLD,
    )
    for words in (("a", "b"), ("b",)):
        running = start("volume", "inspect", *words)
        for _ in words:
            manager.asked("volumes.get")
        running.send_signal(signal.SIGINT)
        out, _err = running.communicate(timeout=20)
        shown = [one["Name"] for one in json.loads(out)] if out else []
        assert (running.returncode, shown) == (130, ["a"] if "a" in words else [])


# who is there


def test_nobody_there(socket_path: str, ctl: Ctl) -> None:
    done = ctl("--connect-timeout", "200ms", "version")
    assert done.returncode == 1
    assert f"connect {socket_path}: no manager answers there".encode() in done.stderr
    assert b"does not exist" in done.stderr
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path)
    done = ctl("--connect-timeout", "200ms", "version")
    assert b"no manager answers there (nobody listens" in done.stderr
    for words in (("run", "image", "c1"), ("create", "image"), ("exec", "c1", "true")):
        done = ctl("--connect-timeout", "10ms", *words)
        assert (done.returncode, b"no manager answers" in done.stderr) == (125, True), words


@pytest.mark.parametrize("speaks_first", [True, False])
def test_a_grpc_socket_is_named_at_once(socket_path: str, ctl: Ctl, speaks_first: bool) -> None:
    settings = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))

    def answer(connection: socket.socket) -> None:
        # A client that closes with our bytes unread resets the connection.
        with connection, contextlib.suppress(ConnectionResetError):
            if speaks_first:
                connection.sendall(settings)
            while data := connection.recv(4096):
                if data.startswith(b"PRI * HTTP/2.0"):
                    connection.sendall(settings)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(socket_path)
        server.listen(8)
        threading.Thread(target=serve, daemon=True).start()
        done = ctl("--connect-timeout", "1m", "version")
        server.shutdown(socket.SHUT_RDWR)
    assert done.returncode == 1
    assert b"gRPC" in done.stderr


def test_a_manager_that_comes_late_is_waited_for(
    socket_path: str, environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        [str(CTL), "--connect-timeout", "20s", "version"], env=environment, stdout=subprocess.PIPE
    ) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        with FakeManager(socket_path) as manager:
            manager.on("version.get", VERSION)
            assert process.wait(20) == 0


# output that nobody reads


def test_a_closed_standard_output_ends_quietly(manager: FakeManager, ctl: Ctl) -> None:
    manager.on("tasks.list", {"tasks": [TASK] * 20_000})
    script = f"{CTL} tasks ls | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "LIGHTER_ADDRESS": manager.path},
        capture_output=True,
        timeout=20,
    )
    assert done.stdout == b"TASK    PID    STATUS\n"
    assert (done.returncode, done.stderr) == (141, b"")


def test_missing_standard_descriptors_are_no_pipes_of_ours(manager: FakeManager) -> None:
    playing(manager, b"output", code=3)
    done = subprocess.run(
        ["bash", "-c", f"{CTL} run --rm busybox c1 <&- >&-"],
        env={**os.environ, "LIGHTER_ADDRESS": manager.path},
        capture_output=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (3, b"")


# images


def test_an_import_shows_each_image(manager: FakeManager, ctl: Ctl, tmp_path: Path) -> None:
    archive = tmp_path / "nginx.img"
    archive.write_bytes(b"archive")

    def import_(ask: Ask) -> Any:
        with open(ask.body["source"], "rb") as file:
            assert file.read() == b"archive"
        common = {"ref": "nginx:alpine", "digest": "sha256:aa"}
        items = [{**common, "status": status} for status in ("reading", "unpacking", "done")]
        ask.items(items)
        return {"images": ["nginx:alpine"]}

    manager.on("images.import", import_)
    wanted = b"unpacking nginx:alpine (sha256:aa)...done\n"
    assert ctl("images", "import", "nginx.img", cwd=str(tmp_path)).stdout == wanted
    assert ctl("images", "import", "-", input=b"archive").stdout == wanted
    lines = ctl("--format", "json", "images", "import", str(archive)).stdout.splitlines()
    assert [json.loads(line).get("status") for line in lines][:3] == [
        "reading",
        "unpacking",
        "done",
    ]
    assert json.loads(lines[3]) == {"images": ["nginx:alpine"]}


def test_an_archive_that_cannot_be_opened(manager: FakeManager, ctl: Ctl) -> None:
    done = ctl("images", "import", "/absent")
    assert (done.returncode, done.stderr) == (1, b"ctl: open /absent: No such file or directory\n")


def test_logs_go_to_the_stream_they_came_from(manager: FakeManager, ctl: Ctl) -> None:
    items = [
        {"timestamp": 1_000_000_000, "stream": 1, "data": b"one\ntw"},
        {"timestamp": 2_000_000_000, "stream": 2, "data": b"err\n"},
        {"timestamp": 3_000_000_000, "stream": 1, "data": b"o\n\xff"},
    ]
    manager.on("logs.read", items)
    done = ctl("logs", "--tail", "5", "c1")
    assert (done.stdout, done.stderr) == (b"one\ntwo\n\xff", b"err\n")
    assert manager.asked("logs.read").body["tail"] == 5
    stamped = ctl("logs", "-t", "c1").stdout
    first, third = b"1970-01-01T00:00:01Z ", b"1970-01-01T00:00:03Z "
    assert stamped == first + b"one\n" + first + b"two\n" + third + b"\xff"
    lines = ctl("--format", "json", "logs", "c1").stdout.splitlines()
    assert json.loads(lines[1]) == {
        "timestamp": "1970-01-01T00:00:02Z",
        "stream": "stderr",
        "data": "err\n",
    }
