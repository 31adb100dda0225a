"""The runtime as a program: its arguments, and programs that do what a runtime should not."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from lighter.shim import runc
from tests.processes import plain_oom_score

# A process of its own, because its reaper waits for every child there is.
_RUN = """
import sys
from lighter.proto.errors import LighterError
from lighter.shim.loop import Loop
from lighter.shim.reaper import Reaper, arm
from lighter.shim.runc import Runc

binary, log, timeout_s, verb = sys.argv[1:]
arm()
loop = Loop(lambda error: print("uncaught", repr(error)))
runtime = Runc(loop, Reaper(loop), binary, "/the/root", log)

async def main():
    try:
        await runtime.run([verb, "c"], float(timeout_s))
        print("ok")
    except LighterError as err:
        print(err.code, err.details, err.message)
    loop.stop()

loop.spawn(main())
loop.run()
"""


def run(
    binary: str,
    tmp_path: Path,
    timeout_s: float = 10,
    program: str = _RUN,
    verb: str = "start",
) -> str:
    argv = [binary, str(tmp_path / "log"), str(timeout_s), verb]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *argv],
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not list(tmp_path.glob("log*")), "the runtime's log is left behind"
    return done.stdout.decode().strip()


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "runtime"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def log_lines(*entries: object) -> str:
    """Shell that writes these JSON lines to the log that it is given."""
    text = "\n".join(json.dumps(entry) for entry in entries)
    return f"cat >\"$4\" <<'EOF'\n{text}\nEOF\n"


def test_arguments() -> None:
    assert runc.create_argv("/b", "/b/pid", "", "c") == [
        *("create", "--bundle", "/b", "--pid-file", "/b/pid", "c")
    ]
    assert runc.create_argv("/b", "/b/pid", "/s/1", "c") == [
        *("create", "--bundle", "/b", "--pid-file", "/b/pid", "--console-socket", "/s/1", "c")
    ]
    assert runc.exec_argv("/p.json", "/b/pid", "/s/1", "c") == [
        *("exec", "--detach", "--process", "/p.json", "--pid-file", "/b/pid"),
        *("--console-socket", "/s/1", "c"),
    ]
    assert runc.delete_argv("c") == ["delete", "c"]
    assert runc.delete_argv("c", force=True) == ["delete", "--force", "c"]


def test_success(tmp_path: Path) -> None:
    assert run("/bin/true", tmp_path) == "ok"


def test_the_call_is_what_runc_expects(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    assert run(script(tmp_path, f'echo "$@" >{seen}; env >>{seen}'), tmp_path) == "ok"
    call, *environment = seen.read_text().splitlines()
    assert call == f"--root /the/root --log {tmp_path}/log.1 --log-format json start c"
    names = {line.partition("=")[0] for line in environment}
    assert names <= {"PATH", "PWD", "_", "SHLVL"}, "sh adds PWD; nothing of ours gets through"


def test_what_protects_a_shim_protects_no_container(tmp_path: Path) -> None:
    """Its oom score would be that of every container whose spec has none. It keeps it itself."""
    seen = tmp_path / "seen"
    runtime = script(tmp_path, f"cat /proc/self/oom_score_adj >{seen}")
    raised = """
with open("/proc/self/oom_score_adj", "w") as score:
    score.write("100")
"""
    after = """
with open("/proc/self/oom_score_adj") as score:
    print(score.read().strip())
"""
    assert run(runtime, tmp_path, program=f"{raised}{_RUN}{after}") == "ok\n100"
    assert seen.read_text() == f"{plain_oom_score()}\n"


def test_failure_without_a_word(tmp_path: Path) -> None:
    assert run("/bin/false", tmp_path) == (
        "failed-precondition {'runtime': 'start', "
        "'said': 'it ended with exit status 1 and logged no error'} "
        "start task c: it ended with exit status 1 and logged no error"
    )


def test_a_crash_names_its_signal(tmp_path: Path) -> None:
    assert "it ended with signal 11" in run(script(tmp_path, "kill -SEGV $$"), tmp_path)


def test_the_last_error_is_quoted(tmp_path: Path) -> None:
    lines = log_lines(
        {"level": "error", "msg": "first"},
        {"level": "error", "msg": "the cause"},
        {"level": "info", "msg": "more"},
    )
    assert run(script(tmp_path, lines + "exit 1"), tmp_path).endswith(" start task c: the cause")


@pytest.mark.parametrize(
    ("message", "exit_code"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ('exec: "/no": stat /no: no such file or directory', 127),
        ('exec: "/etc/passwd": permission denied', 126),
        ("exec /bin/x: exec format error", 126),
        ('exec: "/tmp": is a directory', 126),
        ("executable file `nope` not found in $PATH: No such file or directory", 127),
        ("open executable: Permission denied", 126),
        ('chdir to cwd ("/no") set in config.json failed: no such file or directory', 127),
    ],
)
def test_what_a_shell_would_exit_with(tmp_path: Path, message: str, exit_code: int) -> None:
    answer = run(
        script(tmp_path, log_lines({"level": "error", "msg": message}) + "exit 1"), tmp_path
    )
    assert answer.startswith("failed-precondition {'runtime': 'start', 'said': ")
    assert f"'exit_code': {exit_code}}} start task c: {message}" in answer


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("create", 'error mounting "/src" to rootfs at "/x": stat /src: no such file or directory'),
        ("create", "error stat'ing file `/src`: No such file or directory"),
        ("create", "error running hook: fork/exec /hook: permission denied"),
        ("start", "error opening file `/run/c/status`: No such file or directory"),
        ("checkpoint", 'exec: "criu": executable file not found in $PATH'),
    ],
)
def test_what_is_missing_besides_the_program_is_not_a_program_that_is_missing(
    tmp_path: Path, verb: str, message: str
) -> None:
    failing = script(tmp_path, log_lines({"level": "error", "msg": message}) + "exit 1")
    answer = run(failing, tmp_path, verb=verb)
    assert answer.startswith("failed-precondition ") and "exit_code" not in answer


def test_a_hang_is_ended_with_its_whole_group(tmp_path: Path) -> None:
    child = tmp_path / "child"
    text = log_lines({"level": "error", "msg": "it was slow"})
    text += f"sleep 1000 & echo $! >{child}; wait"
    answer = run(script(tmp_path, text), tmp_path, timeout_s=2.0)
    assert answer.startswith("deadline-exceeded {} run ")
    assert answer.endswith("start: no answer within 2 s; its last words: it was slow")
    try:
        pidfd = os.pidfd_open(int(child.read_text()))
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 20)[0], "the runtime's child goes on"
    finally:
        os.close(pidfd)


def test_a_hang_that_ignores_signals_is_ended_too(tmp_path: Path) -> None:
    answer = run(script(tmp_path, "trap '' TERM INT HUP; sleep 1000"), tmp_path, timeout_s=0.3)
    assert answer.startswith("deadline-exceeded")


def test_megabytes_of_standard_error_change_nothing(tmp_path: Path) -> None:
    text = (
        "head -c 8000000 /dev/zero >&2; " + log_lines({"level": "error", "msg": "why"}) + "exit 1"
    )
    assert run(script(tmp_path, text), tmp_path).endswith(" start task c: why")


def test_a_missing_runtime(tmp_path: Path) -> None:
    assert run("/no/runc", tmp_path) == "not-found {} run /no/runc start: no such file"


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01" + bytes(57)])
def test_a_runtime_that_cannot_be_executed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runtime"
    path.write_bytes(content)
    path.chmod(0o755 if content.startswith(b"\x7f") else 0o644)
    assert run(str(path), tmp_path).startswith("unavailable {} run ")


def test_signals_are_at_their_default(tmp_path: Path) -> None:
    """Python ignores some, glibc two more, and what is ignored stays so through exec."""
    seen = tmp_path / "seen"
    text = f"exec grep -E '^Sig(Ign|Blk)' /proc/self/status >{seen}"
    assert run(script(tmp_path, text), tmp_path) == "ok"
    assert {line.split()[1] for line in seen.read_text().splitlines()} == {"0" * 16}


class TestLastError:
    """Of a log that the container has a part in."""

    def write(self, tmp_path: Path, data: bytes) -> str:
        path = tmp_path / "log"
        path.write_bytes(data)
        return runc.last_error(str(path))

    def test_no_log(self, tmp_path: Path) -> None:
        assert runc.last_error(str(tmp_path / "log")) == ""

    def test_only_the_tail_is_read(self, tmp_path: Path) -> None:
        early = json.dumps({"level": "error", "msg": "early"}).encode() + b"\n"
        assert self.write(tmp_path, early + b"x" * runc.MAX_LOG_TAIL) == ""
        filler = b"x" * (runc.MAX_LOG_TAIL - 100) + b"\n"
        late = json.dumps({"level": "fatal", "msg": "late"}).encode()
        assert self.write(tmp_path, early + filler * 20 + late) == "late"

    def test_a_quote_is_capped(self, tmp_path: Path) -> None:
        line = json.dumps({"level": "error", "msg": "y" * 50_000}).encode()
        assert self.write(tmp_path, line) == "y" * runc.MAX_QUOTE

    @pytest.mark.parametrize(
        "line",
        [
            b"not json",
            b"\xff\xfe\x00",
            b"[]",
            b"3",
            b'{"level": 1}',
            b"[" * 60_000,
            b'{"msg": "m"}',
        ],
    )
    def test_strange_lines_are_passed_over(self, tmp_path: Path, line: bytes) -> None:
        error = json.dumps({"level": "error", "msg": "why"}).encode()
        assert self.write(tmp_path, error + b"\n" + line) == "why"

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "other").write_text(json.dumps({"level": "error", "msg": "secret"}))
        (tmp_path / "log").symlink_to("other")
        assert runc.last_error(str(tmp_path / "log")) == ""
