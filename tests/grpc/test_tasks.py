"""containerd's Tasks by a Python client: what ctr does not reach."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.timestamp_pb2 import Timestamp

from lighter.daemon.grpc.pb import runc_options_pb2, snapshots_pb2, tasks_pb2
from lighter.daemon.grpc.pb.task_types_pb2 import Status
from lighter.daemon.grpc.pb.types_pb2 import Mount
from lighter.daemon.grpc.taskwords import of_runtime
from lighter.proto import errors
from tests import cgroups
from tests.grpc.client import code
from tests.grpc.pair import heard
from tests.grpc.space import coroutines, level
from tests.grpc.workshop import Workshop
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.lives import NO_STDIO, ask
from tests.stuckmemory import stuck_process

NOT_YET = Timestamp(seconds=-62135596800)  # Go's zero time, of what has not ended


def _refused(call: Any, *args: Any, **fields: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call(*args, **fields)
    return code(refused.value), refused.value.details()


def _later(call: Any, *args: Any, **fields: Any) -> "tuple[threading.Thread, list[Any]]":
    """A call under way, and where its answer will be."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call(*args, **fields)))
    thread.start()
    return thread, answers


def test_wait_before_start(workshop: Workshop) -> None:
    """Of a task, and of a process that was added: both are heard of when they end."""
    pid = workshop.create("c", "sleep", "1000")
    task = workshop.tasks("Get", container_id="c").process
    assert (task.id, task.pid, task.status) == ("c", pid, Status.CREATED)
    assert task.exited_at == NOT_YET
    of_task = _later(workshop.tasks, "Wait", container_id="c")
    assert workshop.tasks("Start", container_id="c").pid == pid
    workshop.exec("c", "e", "sh", "-c", "exit 7")
    added = workshop.tasks("Get", container_id="c", exec_id="e").process
    assert (added.id, added.pid, added.status) == ("e", 0, Status.CREATED)
    for process in (added, *workshop.tasks("List").tasks):
        assert process.exited_at == NOT_YET
    of_exec = _later(workshop.tasks, "Wait", container_id="c", exec_id="e")
    exec_pid = workshop.tasks("Start", container_id="c", exec_id="e").pid
    of_exec[0].join(30)
    assert of_exec[1][0].exit_status == 7
    gone = workshop.tasks("DeleteProcess", container_id="c", exec_id="e")
    assert (gone.id, gone.pid, gone.exit_status) == ("e", exec_pid, 7)
    assert gone.exited_at == of_exec[1][0].exited_at
    workshop.tasks("Kill", container_id="c", signal=9)
    of_task[0].join(30)
    assert of_task[1][0].exit_status == 137
    task = workshop.tasks("Get", container_id="c").process
    assert (task.status, task.exit_status) == (Status.STOPPED, 137)
    gone = workshop.tasks("Delete", container_id="c")
    assert (gone.pid, gone.exit_status, gone.exited_at) == (pid, 137, task.exited_at)


def test_clients_that_go_leave_nothing_that_waits(workshop: Workshop) -> None:
    """Cancelled Waits, and a ctr that is killed while it is attached."""
    folder = f"/proc/{workshop.lighterd.pid}/fd"
    workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    workshop.exec("c", "e", "sleep", "1000")
    # Who asks for coroutines has a connection, which goes later: descriptors are counted before.
    descriptors = level(lambda: len(os.listdir(folder)))
    running = level(lambda: coroutines(workshop.lighterd))
    waiting = [
        workshop.api.future(tasks_pb2, "Tasks", "Wait", container_id="c", exec_id=exec_id)
        for exec_id in ("", "e")
        for _ in range(25)
    ]
    await_that(lambda: coroutines(workshop.lighterd) >= running + 40, 30, "they wait")
    for call in waiting:
        call.cancel()
    await_that(lambda: coroutines(workshop.lighterd) < running + 10, 30, "none of them waits")

    fifos = ("--fifo-dir", str(workshop.fifos))
    argv = ["ctr", "-a", workshop.lighterd.grpc_address, "-n", workshop.namespace, "run", *fifos]
    script = "echo begun; exec sleep 1000"
    attached = subprocess.Popen(
        [*argv, REFERENCE, "a", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert attached.stdout is not None and attached.stdout.readline() == b"begun\n"
    attached.kill()
    attached.communicate()
    await_that(lambda: coroutines(workshop.lighterd) < running + 10, 30, "nothing waits for it")
    await_that(lambda: len(os.listdir(folder)) <= descriptors + 2, 30, "its descriptors are closed")
    workshop.tasks("Kill", container_id="a", signal=9)
    assert workshop.tasks("Wait", container_id="a").exit_status == 137
    workshop.tasks("Delete", container_id="a")


def test_a_process_that_is_only_added(workshop: Workshop) -> None:
    workshop.create("c", "sleep", "1000")
    assert _refused(workshop.exec, "c", "e", "true")[0] == "UNKNOWN"
    workshop.tasks("Start", container_id="c")
    workshop.exec("c", "e", "true")
    assert _refused(workshop.exec, "c", "e", "true") == (
        "ALREADY_EXISTS",
        "id e: already exists",
    )
    for number in (9, 0):
        killed = _refused(workshop.tasks, "Kill", container_id="c", exec_id="e", signal=number)
        assert killed[0] == "FAILED_PRECONDITION"
    gone = workshop.tasks("DeleteProcess", container_id="c", exec_id="e")
    assert (gone.exit_status, gone.exited_at) == (0, NOT_YET)
    missing = _refused(workshop.tasks, "Start", container_id="c", exec_id="e")
    assert missing == ("NOT_FOUND", "process does not exist e: not found")
    workshop.exec("c", "bad", "nosuch")
    failed = _refused(workshop.tasks, "Start", container_id="c", exec_id="bad")
    assert failed[0] == "UNKNOWN" and "OCI runtime exec failed" in failed[1]
    assert workshop.tasks("Get", container_id="c", exec_id="bad").process.status == Status.CREATED
    workshop.tasks("DeleteProcess", container_id="c", exec_id="bad")


@pytest.mark.parametrize(
    ("error", "passed_on"),
    [
        (errors.FailedPrecondition("pause task c: why", runtime="pause", said="why"), "what: why"),
        (errors.FailedPrecondition("run container process: runc pause: a: b\nc"), "what: a: b\nc"),
        (errors.FailedPrecondition("pause task c: why"), "pause task c: why"),
    ],
    ids=["a runtime's", "a runtime's by a shim of the release before", "our own"],
)
def test_a_runtimes_words_are_told_from_our_own(error: errors.LighterError, passed_on: str) -> None:
    assert of_runtime(error, "what").message == passed_on


def test_who_waits_for_a_process_hears_of_a_start_that_fails(workshop: Workshop) -> None:
    """It ran to no end; when a later start succeeds, the end is told."""
    which = {"container_id": "c", "exec_id": "e"}
    workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    workshop.exec("c", "e", "/late")
    waiting = workshop.api.future(tasks_pb2, "Tasks", "Wait", **which)
    assert _refused(workshop.tasks, "Start", **which)[0] == "UNKNOWN"
    for answer in (waiting.result(30), workshop.tasks("Wait", **which)):
        assert (answer.exit_status, answer.exited_at) == (0, NOT_YET)
    workshop.ctl("exec", "c", "sh", "-c", "printf '#!/bin/sh\\nexit 7' >/late; chmod +x /late")
    workshop.tasks("Start", **which)
    assert workshop.tasks("Wait", **which).exit_status == 7
    workshop.tasks("DeleteProcess", **which)


def test_f75_what_is_asked_again_has_no_second_effect(workshop: Workshop) -> None:
    """Each call of a life, as by a client that has lost the answer to the first one."""
    workshop.ctr("containers", "create", "--", REFERENCE, "c", "sh", "-c", "echo >>/count; cat")
    made = workshop.containers("Get", id="c").container
    assert _refused(workshop.containers, "Create", container=made)[0] == "ALREADY_EXISTS"

    def again(wanted: str, call: Any, *args: Any, **fields: Any) -> None:
        call(*args, **fields)
        assert _refused(call, *args, **fields)[0] == wanted

    init, other = {"container_id": "c"}, {"container_id": "c", "exec_id": "e"}
    stdin = workshop.fifo("stdin")
    again("ALREADY_EXISTS", workshop.create_task, "c", stdin=stdin)
    again("UNKNOWN", workshop.tasks, "Start", **init)  # which is containerd's word
    again("ALREADY_EXISTS", workshop.exec, "c", "e", "sh", "-c", "echo >>/count")
    again("UNKNOWN", workshop.tasks, "Start", **other)
    assert workshop.tasks("Wait", **other).exit_status == 0
    again("NOT_FOUND", workshop.tasks, "DeleteProcess", **other)
    workshop.exec("c", "look", "sh", "-c", "exit $(wc -l </count)")
    workshop.tasks("Start", container_id="c", exec_id="look")
    assert workshop.tasks("Wait", container_id="c", exec_id="look").exit_status == 2
    workshop.tasks("Kill", **init, signal=9)
    assert workshop.tasks("Wait", **init).exit_status == 137
    assert _refused(workshop.tasks, "Kill", **init, signal=9)[0] == "NOT_FOUND"
    again("NOT_FOUND", workshop.tasks, "Delete", **init)
    again("NOT_FOUND", workshop.containers, "Delete", id="c")
    root = {"snapshotter": "overlayfs", "key": "c"}
    again("NOT_FOUND", workshop.api.call, snapshots_pb2, "Snapshots", "Remove", **root)


def test_an_added_process_outlives_the_manager(lighterd: Lighterd, tmp_path: Path) -> None:
    with Workshop(lighterd, tmp_path / "fifos") as workshop:
        workshop.create("c", "sleep", "1000")
        workshop.tasks("Start", container_id="c")
        out = workshop.fifo("out")
        workshop.exec("c", "e", "echo", "kept", stdout=out)
        lighterd.kill9()
        lighterd.start()
        assert workshop.tasks("Get", container_id="c", exec_id="e").process.stdout == out
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        workshop.tasks("Start", container_id="c", exec_id="e")
        assert workshop.tasks("Wait", container_id="c", exec_id="e").exit_status == 0
        os.set_blocking(reader, True)
        assert os.read(reader, 100) == b"kept\n"
        os.close(reader)


def test_streams(workshop: Workshop) -> None:
    """FIFOs of the client's: input that ends when it says so, and nobody who reads."""
    stdin, stdout = workshop.fifo("in"), workshop.fifo("out")
    workshop.create("c", "cat", stdin=stdin, stdout=stdout)
    workshop.tasks("Start", container_id="c")
    task = workshop.tasks("Get", container_id="c").process
    assert (task.stdin, task.stdout, task.stderr) == (stdin, stdout, "")
    for word in (b"one\n", b"two\n"):  # a writer that goes is not the end
        Path(stdin).write_bytes(word)
    with open(stdout, "rb") as reader:
        assert reader.readline() + reader.readline() == b"one\ntwo\n"
        workshop.tasks("CloseIO", container_id="c", stdin=True)
        assert workshop.tasks("Wait", container_id="c").exit_status == 0
        assert reader.read() == b""
    workshop.tasks("Delete", container_id="c")


def test_a_delete_waits_for_no_reader_that_is_not_there(workshop: Workshop) -> None:
    """An init and an exec that have written what nobody reads."""
    workshop.create("c", "sh", "-c", "echo unread; sleep 1000", stdout=workshop.fifo("out"))
    workshop.tasks("Start", container_id="c")
    workshop.exec("c", "e", "echo", "unread", stdout=workshop.fifo("exec"))
    workshop.tasks("Start", container_id="c", exec_id="e")
    workshop.tasks("Wait", container_id="c", exec_id="e")
    workshop.tasks("Kill", container_id="c", signal=9)
    workshop.tasks("Wait", container_id="c")
    deleting = _later(workshop.tasks, "Delete", container_id="c")
    deleting[0].join(9)  # unread output is kept for 10 s otherwise
    assert deleting[1] and deleting[1][0].exit_status == 137


def test_a_logging_program(workshop: Workshop, tmp_path: Path) -> None:
    """binary://: it gets both streams, the names and its words, and is ready before the start."""
    program = tmp_path / "logger"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" > {tmp_path}/words\n'
        "exec 5>&-\n"
        f"cat <&3 > {tmp_path}/out &\ncat <&4 > {tmp_path}/err\nwait\necho done > {tmp_path}/end\n"
    )
    program.chmod(0o755)
    uri = f"binary://{program}?level=debug&tag=x"
    workshop.create("c", "sh", "-c", "echo to out; echo to err >&2", stdout=uri, stderr=uri)
    assert (tmp_path / "words").read_text() == f"{workshop.namespace} c level debug tag x\n"
    workshop.tasks("Start", container_id="c")
    assert workshop.tasks("Wait", container_id="c").exit_status == 0
    await_that((tmp_path / "end").exists, 30, "the program sees both ends")
    assert (tmp_path / "out").read_text() == "to out\n"
    assert (tmp_path / "err").read_text() == "to err\n"
    missing = f"binary://{tmp_path}/missing"
    workshop.tasks("Delete", container_id="c")
    assert _refused(workshop.create_task, "c", stdout=missing)[0] == "NOT_FOUND"


def test_a_logging_program_that_is_never_ready_is_ended(workshop: Workshop, tmp_path: Path) -> None:
    program = tmp_path / "logger"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    program.chmod(0o755)
    workshop.ctr("containers", "create", REFERENCE, "c")

    refused = _refused(workshop.create_task, "c", stdout=f"binary://{program}")

    assert refused[0] == "DEADLINE_EXCEEDED"
    pid = int((tmp_path / "pid").read_text())
    await_that(lambda: not os.path.exists(f"/proc/{pid}"), 10, "the program is ended")


def test_an_exec_that_fails_late_leaves_no_process(workshop: Workshop) -> None:
    """SEC-79: its terminal is there, its program runs, and then its FIFO cannot be opened."""
    init = workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    stdout = workshop.fifo("out")
    workshop.exec("c", "e", "sh", "-c", "trap '' HUP; sleep 1000", stdout=stdout, terminal=True)
    os.unlink(stdout)

    assert _refused(workshop.tasks, "Start", container_id="c", exec_id="e")[0] != "OK"

    def pids() -> list[int]:
        return [info.pid for info in workshop.tasks("ListPids", container_id="c").processes]

    await_that(lambda: pids() == [init], 10, "only init is left")
    workshop.tasks("DeleteProcess", container_id="c", exec_id="e")


def test_a_terminal_has_its_size_from_the_start(workshop: Workshop) -> None:
    """ctr tells it between Exec and Start."""
    workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    stdout = workshop.fifo("out")
    workshop.exec("c", "e", "stty", "size", stdout=stdout, terminal=True)
    workshop.tasks("ResizePty", container_id="c", exec_id="e", width=123, height=45)
    workshop.tasks("CloseIO", container_id="c", exec_id="e", stdin=True)
    workshop.tasks("Start", container_id="c", exec_id="e")
    with open(stdout, "rb") as reader:
        assert reader.readline().split() == [b"45", b"123"]
    assert workshop.tasks("Wait", container_id="c", exec_id="e").exit_status == 0
    workshop.tasks("ResizePty", container_id="c", exec_id="e", width=80, height=24)
    workshop.tasks("DeleteProcess", container_id="c", exec_id="e")


def test_a_size_for_what_has_no_terminal(workshop: Workshop) -> None:
    """It is passed over, as is an end of input for what has ended; execs pause with the task."""
    workshop.create("c", "sleep", "1000")
    size = {"width": 80, "height": 24}
    workshop.tasks("ResizePty", container_id="c", **size)
    workshop.tasks("Start", container_id="c")
    workshop.exec("c", "e", "sleep", "1000")
    workshop.tasks("ResizePty", container_id="c", exec_id="e", **size)
    workshop.tasks("Start", container_id="c", exec_id="e")
    for exec_id in ("", "e"):
        workshop.tasks("ResizePty", container_id="c", exec_id=exec_id, **size)
    workshop.tasks("Pause", container_id="c")
    paused = workshop.tasks("Get", container_id="c", exec_id="e").process
    assert paused.status == Status.PAUSED
    workshop.tasks("Resume", container_id="c")
    workshop.tasks("Kill", container_id="c", signal=9)
    for exec_id in ("", "e"):
        workshop.tasks("Wait", container_id="c", exec_id=exec_id)
        workshop.tasks("ResizePty", container_id="c", exec_id=exec_id, **size)
        workshop.tasks("CloseIO", container_id="c", exec_id=exec_id, stdin=True)
    workshop.tasks("DeleteProcess", container_id="c", exec_id="e")
    workshop.tasks("Delete", container_id="c")


def test_streams_that_cannot_be(workshop: Workshop) -> None:
    workshop.ctr("containers", "create", REFERENCE, "c")
    for uri in ("ftp://x", "relative", "/proc/1/fd/1", "file:///proc/1/fd/1", "binary://"):
        assert _refused(workshop.create_task, "c", stdout=uri)[0] == "INVALID_ARGUMENT", uri
    assert _refused(workshop.create_task, "c", stdout="/etc/passwd")[0] == "INVALID_ARGUMENT"
    # As a file a FIFO without a reader would hold the whole shim up in open(2).
    as_file = f"file://{workshop.fifo('nobody')}"
    assert _refused(workshop.create_task, "c", stdout=as_file)[0] == "INVALID_ARGUMENT"
    assert list(workshop.tasks("List").tasks) == []


def test_pids_and_kill_all(workshop: Workshop) -> None:
    pid = workshop.create("c", "sh", "-c", "trap '' TERM; sleep 1000 & wait")
    workshop.tasks("Start", container_id="c")
    workshop.exec("c", "e", "sleep", "1000")
    exec_pid = workshop.tasks("Start", container_id="c", exec_id="e").pid

    def processes() -> Any:
        return workshop.tasks("ListPids", container_id="c").processes

    await_that(lambda: len(processes()) == 3, 30, "all three run")
    infos = {process.pid: process.info for process in processes()}
    details = runc_options_pb2.ProcessDetails()
    assert infos[exec_pid].type_url == "containerd.runc.v1.ProcessDetails"
    details.ParseFromString(infos[exec_pid].value)
    assert details.exec_id == "e" and not infos[pid].type_url
    for which in ({}, {"exec_id": "e"}, {"all": True}):  # nobody is sent a signal 0
        workshop.tasks("Kill", container_id="c", signal=0, **which)
    workshop.tasks("Kill", container_id="c", signal=15, all=True)
    assert workshop.tasks("Wait", container_id="c", exec_id="e").exit_status == 143
    workshop.tasks("Kill", container_id="c", signal=9)
    assert workshop.tasks("Wait", container_id="c").exit_status == 137
    for number in (9, 0):
        again = _refused(workshop.tasks, "Kill", container_id="c", signal=number)
        assert again == ("NOT_FOUND", "process already finished: not found")


def test_a_kill_between_an_end_and_its_event_is_of_what_has_finished(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Clients switch on the code: they wait for the end, or tell a kill that has failed."""
    workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    # What others go on writing gets its time before the end is told; as nothing may stand in the
    # pipe at a moment, some of them are told at once.
    flood = "(echo >/begun; head -c 100000000 /dev/zero) & until [ -s /begun ]; do :; done; exit 7"
    for number in range(6):
        out = tmp_path / str(number)
        which = {"container_id": "c", "exec_id": f"e{number}"}
        workshop.exec("c", which["exec_id"], "sh", "-c", flood, stdout=f"file://{out}")
        workshop.tasks("Start", **which)
        refusal: tuple[str, str] | None = None
        while refusal is None:
            try:
                workshop.tasks("Kill", **which, signal=signal.SIGCONT if number % 2 else 0)
            except grpc.RpcError as error:
                refusal = code(error), error.details()
        assert refusal == ("NOT_FOUND", "process already finished: not found")
        assert workshop.tasks("Wait", **which).exit_status == 7
        out.unlink()


def test_a_process_whose_memory_is_locked_holds_up_who_asks_for_its_arguments_alone(
    workshop: Workshop, tmp_path: Path
) -> None:
    """As when it waits for a dead disk: its pid is listed all the same."""
    pid = workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    with stuck_process(tmp_path / "disk") as stuck:
        (cgroups.of_process(pid, "pids") / "cgroup.procs").write_text(str(stuck))
        found = workshop.tasks("ListPids", container_id="c").processes
        assert {process.pid for process in found} == {pid, stuck}
        assert str(stuck) in workshop.ctl("tasks", "ps", "c")
        top = workshop.lighterd.ctl("-n", workshop.namespace, "top", "c")
        assert b"read processes of c: a process has not answered in 5 s" in top.stderr
        assert workshop.tasks("Get", container_id="c").process.status == Status.RUNNING


def test_a_mount_within_the_root_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    """Without its target it would lie over the root. The root may be spelled."""
    workshop.ctr("containers", "create", "--", REFERENCE, "c", "sleep", "1000")
    (root,) = workshop.api.call(
        snapshots_pb2, "Snapshots", "Mounts", snapshotter="overlayfs", key="c"
    ).mounts
    inner = Mount(type="bind", source=str(tmp_path), target="/data", options=["rbind"])
    code_, text = _refused(workshop.tasks, "Create", container_id="c", rootfs=[root, inner])
    assert (code_, "'/data'" in text) == ("UNIMPLEMENTED", True)
    root.target = "/"
    workshop.tasks("Create", container_id="c", rootfs=[root])


def test_f73_a_root_that_cannot_be_mounted_is_the_clients_mistake(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.ctr("containers", "create", "--", REFERENCE, "c", "sleep", "1000")
    nowhere = f"lowerdir={tmp_path}/nowhere:{tmp_path}"
    for mount, why in (
        (Mount(type="overlay", source="overlay", options=[nowhere]), "No such file or directory"),
        (Mount(type="nosuchfs", source="none"), "No such device"),
    ):
        said = _refused(workshop.tasks, "Create", container_id="c", rootfs=[mount])
        assert said == ("FAILED_PRECONDITION", f"mount root: {mount.type} of {mount.source}: {why}")


def test_new_limits(workshop: Workshop) -> None:
    """Update, seen in the metrics."""
    workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 77}}
    resources = Any_(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=json.dumps(limits).encode(),
    )
    workshop.tasks("Update", container_id="c", resources=resources)
    shown = json.loads(workshop.ctr("tasks", "metrics", "--format", "json", "c"))
    assert shown["pids"]["limit"] == 77
    memory = shown["memory"]
    assert 64 << 20 in (memory.get("usage_limit"), memory.get("usage", {}).get("limit"))
    resources.value = b'{"memory": {"limit": "much"}}'
    assert _refused(workshop.tasks, "Update", container_id="c", resources=resources)[0] == "UNKNOWN"
    resources.type_url = "something.else"
    bad = _refused(workshop.tasks, "Update", container_id="c", resources=resources)
    assert bad[0] == "INVALID_ARGUMENT"


def test_a_cgroup_is_one_containers_alone(workshop: Workshop) -> None:
    """What else were in it would be ended with it."""
    place = f"/{workshop.namespace}/mine"
    words = ("run", "-d", "--null-io", "--cgroup")
    workshop.ctr(*words, place, REFERENCE, "a", "sleep", "1000")
    for taken in (place, place + "/below", f"/{workshop.namespace}"):
        with pytest.raises(AssertionError, match=r"is shared with|holds processes of others"):
            workshop.ctr(*words, taken, REFERENCE, "b", "sleep", "1000")
        workshop.ctl("rm", "b")
    with pytest.raises(AssertionError, match="no place of its own"):
        workshop.ctr(*words, "/a/../../b", REFERENCE, "b", "sleep", "1000")
    assert "a " in workshop.ctr("tasks", "ls") and "RUNNING" in workshop.ctr("tasks", "ls")


def test_a_lost_shim_of_a_chosen_cgroup(workshop: Workshop) -> None:
    """Its container is found there, ended and told of."""
    place = f"/{workshop.namespace}/mine"
    before = set(workshop.lighterd.shims())
    workshop.ctr("run", "-d", "--null-io", "--cgroup", place, REFERENCE, "a", "sleep", "1000")
    pid = workshop.tasks("Get", container_id="a").process.pid
    (shim,) = (
        found
        for found in set(workshop.lighterd.shims()) - before
        if "--id a" in Path(f"/proc/{found}/cmdline").read_text()
    )
    os.kill(shim, 9)
    assert workshop.tasks("Wait", container_id="a").exit_status == 137
    await_that(lambda: not Path(f"/proc/{pid}").exists(), 30, "init is ended and reaped")
    workshop.tasks("Delete", container_id="a")


def test_the_runtime_of_a_request(workshop: Workshop, tmp_path: Path) -> None:
    """`runtime_path` stands in for the record's: one of containerd's names, or a runtime's own."""
    own, log = tmp_path / "my-runc", tmp_path / "log"
    own.write_text(f'#!/bin/sh\necho "$*" >> {log}\nexec runc "$@"\n')
    own.chmod(0o755)
    workshop.create("c", "sleep", "1000", runtime_path=str(own))
    workshop.tasks("Start", container_id="c")
    workshop.tasks("Kill", container_id="c", signal=9)
    assert workshop.tasks("Wait", container_id="c").exit_status == 137
    workshop.tasks("Delete", container_id="c")
    called = log.read_text()
    assert " create " in called and " start " in called, called
    refused = _refused(workshop.create_task, "c", runtime_path="io.containerd.nosuch.v9")
    assert refused[0] == "UNKNOWN" and "failed to resolve runtime path" in refused[1]
    workshop.create_task("c", runtime_path="io.containerd.runc.v1")
    assert log.read_text().count(" create ") == 1
    workshop.tasks("Delete", container_id="c")


def test_what_is_not_done_is_said(workshop: Workshop) -> None:
    workshop.create("c", "sleep", "1000")
    for method, words in (
        ("Pause", "cannot pause task in created state"),
        ("Resume", "cannot resume task in created state"),
        ("Checkpoint", "cannot checkpoint a task in created state"),
    ):
        assert _refused(workshop.tasks, method, container_id="c") == ("UNKNOWN", words)
    workshop.tasks("Delete", container_id="c")
    options = runc_options_pb2.Options(shim_cgroup="/elsewhere")
    given = Any_(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
    refused = _refused(workshop.create_task, "c", options=given)
    assert refused[0] == "UNIMPLEMENTED" and "shim_cgroup" in refused[1]
    given.type_url = "runtimeoptions.v1.Options"
    assert _refused(workshop.create_task, "c", options=given)[0] == "INVALID_ARGUMENT"


def test_the_owner_of_the_pipes(workshop: Workshop) -> None:
    """io_uid, io_gid: what a container of a user namespace may open again.

    The runtime gives the pipes to the container's own user afterwards, and leaves the group.
    """
    options = runc_options_pb2.Options(io_uid=1234, io_gid=2345, no_new_keyring=True)
    given = Any_(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
    out = workshop.fifo("out")
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    workshop.create("c", "stat", "-Lc", "%u %g", "/proc/self/fd/1", stdout=out, options=given)
    workshop.tasks("Start", container_id="c")
    workshop.tasks("Wait", container_id="c")
    os.set_blocking(reader, True)
    assert os.read(reader, 100) == b"0 2345\n"
    os.close(reader)


def test_both_front_ends_show_the_same(workshop: Workshop) -> None:
    """What ctr started, ctl lists, runs a program in and removes; and the other way round."""
    workshop.ctr("run", "-d", "--null-io", REFERENCE, "a", "sleep", "1000")
    assert "running" in workshop.ctl("tasks", "ls").lower()
    assert workshop.ctl("exec", "a", "echo", "x") == "x\n"
    spec = json.loads(workshop.ctl("containers", "info", "a"))
    assert "sleep" in json.dumps(spec)
    workshop.ctl("rm", "-f", "a")
    assert workshop.ctr("tasks", "ls", "-q") == workshop.ctr("containers", "ls", "-q") == ""
    workshop.ctl("run", "-d", REFERENCE, "b", "sleep", "1000")
    assert "b" in workshop.ctr("tasks", "ls", "-q").split()
    assert json.loads(workshop.ctr("containers", "info", "b"))["Spec"]["process"]["args"]
    says = ("tasks", "exec", "--exec-id", "e", "b", "echo", "y")
    assert heard(lambda: workshop.ctr(*says)) == "y\n"
    workshop.ctr("tasks", "rm", "-f", "b")
    workshop.ctr("tasks", "start", "-d", "--null-io", "b")
    assert workshop.tasks("Get", container_id="b").process.status == Status.RUNNING
    workshop.ctr("tasks", "rm", "-f", "b")
    workshop.ctr("containers", "rm", "b")
    assert workshop.ctl("ls", "-q") == ""


def test_no_client_takes_a_name_of_a_health_checks(workshop: Workshop) -> None:
    """What runs by such a name is told to nobody."""
    workshop.create("c", "sleep", "1000")
    workshop.tasks("Start", container_id="c")
    name = "lighter-health-0123456789abcdef"
    words = "those that begin with lighter-health- are of health checks"
    why = _refused(workshop.exec, "c", name, "true")
    assert why[0] == "INVALID_ARGUMENT" and words in why[1]
    with pytest.raises(errors.InvalidArgument, match=words):
        which = {"id": "c", "exec_id": name}
        ask(workshop.lighterd, "tasks.exec", workshop.namespace, args=["true"], **which, **NO_STDIO)
    assert len(workshop.tasks("ListPids", container_id="c").processes) == 1
