"""docker run: its streams, its codes, its flags, on the manager's tasks."""

import os
import re
from pathlib import Path

from tests.docker.enclosure import Enclosure
from tests.docker.engine import IMAGE, Engine
from tests.harness import await_that
from tests.typist import Typist


def test_an_attached_run_passes_each_stream_and_the_code(engine: Engine) -> None:
    data = os.urandom(3 << 20)
    done = engine.docker(
        "run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo whole >&2; exit 42", input=data
    )
    assert (done.stdout, done.stderr, done.returncode) == (data, b"whole\n", 42)


def test_a_program_that_is_missing_is_127_and_one_that_is_none_126(engine: Engine) -> None:
    missing = engine.docker("run", "--rm", IMAGE, "nosuch")
    assert missing.returncode == 127
    assert b'exec: "nosuch": executable file not found in $PATH' in missing.stderr
    assert engine.docker("run", "--rm", IMAGE, "/etc/passwd").returncode == 126


def test_a_detached_run_is_listed_logged_and_stopped(engine: Engine) -> None:
    id_ = engine.run(
        *("--name", "box", IMAGE, "sh", "-c"),
        "trap 'echo ending; exit 9' TERM; echo out; echo err >&2; while :; do sleep 0.1; done",
    )
    assert engine.says("ps", "--no-trunc", "--format", "{{.ID}} {{.State}}") == f"{id_} running"
    await_that(
        lambda: (
            engine.docker("logs", "box").stdout + engine.docker("logs", "box").stderr
            == b"out\nerr\n"
        ),
        30,
        "both streams are in the log",
    )
    assert engine.says("stop", "-t", "20", "box") == "box"
    state = engine.state("box")
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 9, False)
    assert engine.says("logs", "box").endswith("ending")
    assert engine.says("ps", "-q") == ""
    assert engine.says("rm", "box") == "box"


def test_a_terminal_has_its_size_and_its_code(engine: Engine) -> None:
    typist = Typist(engine.docker_argv("run", "--rm", "-it", IMAGE, "sh"))
    try:
        typist.expect(rb"# ")
        typist.resize(33, 111)
        typist.type(b"tty; until stty size | grep '33 111'; do sleep 0.1; done\n")
        typist.expect(rb"/dev/pts/0\r\n(stty: .*\r\n)*33 111\r\n")  # until then 0 0
        typist.type(b"exit 5\n")
        assert typist.wait() == 5
    finally:
        typist.close()


def test_the_keys_detach_and_attach_comes_back(engine: Engine) -> None:
    typist = Typist(engine.docker_argv("run", "--name", "box", "-it", IMAGE, "sh"))
    try:
        typist.expect(rb"# ")
        typist.type(b"word=kept\n")
        typist.expect(rb"# ")
        typist.type(b"\x10\x11")
        assert typist.wait() == 0
    finally:
        typist.close()
    again = Typist(engine.docker_argv("attach", "box"))
    try:
        again.type(b"echo $word$((40+2)); exit 6\n")
        again.expect(rb"kept42\r\n")
        assert again.wait() == 6
    finally:
        again.close()


def test_a_port_and_a_volume_serve_and_a_pause_stops_them(
    engine: Engine, enclosure: Enclosure, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("from the host")
    engine.run(
        *("--name", "web", "-p", "127.0.0.1:8080:80", "-v", f"{tmp_path}:/www:ro"),
        *(IMAGE, "httpd", "-f", "-p", "80", "-h", "/www"),
    )

    def fetch() -> bytes:
        return enclosure.run(
            "busybox", "timeout", "1", "busybox", "wget", "-qO-", "http://127.0.0.1:8080/"
        ).stdout

    await_that(lambda: fetch() == b"from the host", 30, "the port serves")
    assert engine.says("port", "web") == "80/tcp -> 127.0.0.1:8080"
    engine.says("pause", "web")
    assert engine.state("web")["Status"] == "paused"
    assert fetch() == b""
    refused = engine.docker("exec", "web", "true")
    assert b"is paused" in refused.stderr and refused.returncode == 1
    engine.says("unpause", "web")
    await_that(lambda: fetch() == b"from the host", 30, "the port serves again")
    assert engine.docker("exec", "web", "touch", "/www/new").returncode == 1


def test_limits_hold_are_updated_and_measured(engine: Engine) -> None:
    id_ = engine.run("--name", "box", "-m", "64m", "--cpus", "0.5", IMAGE, "sleep", "1000")

    def limit(name: str) -> str:
        folder = next(
            path for path in engine.cgroups() if path.name == id_ and (path / name).exists()
        )
        return (folder / name).read_text().strip()

    assert limit("memory.limit_in_bytes") == str(64 << 20)
    assert limit("cpu.cfs_quota_us") == "50000"
    engine.says("update", "-m", "128m", "--memory-swap", "256m", "--cpus", "1", "box")
    assert limit("memory.limit_in_bytes") == str(128 << 20)
    assert limit("cpu.cfs_quota_us") == "100000"
    stats = ("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "box")
    # One process, once the runtime's own threads have become the program.
    await_that(
        lambda: re.fullmatch(r"[0-9.]+[KM]iB / 128MiB 1", engine.says(*stats)), 60, "it is measured"
    )


def test_a_container_out_of_memory_says_so(engine: Engine) -> None:
    argv = ("sh", "-c", "x=$(yes | head -c 100000000)")
    assert engine.docker("run", "--name", "box", "-m", "16m", IMAGE, *argv).returncode == 137
    state = engine.await_state("box", OOMKilled=True)
    assert (state["ExitCode"], state["Status"]) == (137, "exited")


def test_a_restart_policy_counts_and_gives_up(engine: Engine) -> None:
    engine.run("--name", "box", "--restart", "on-failure:2", IMAGE, "sh", "-c", "date; exit 9")

    def count() -> str:
        return engine.says("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "box")

    await_that(lambda: count() == "2 exited", 30, "it was started three times")
    assert engine.state("box")["ExitCode"] == 9
    assert len(engine.says("logs", "box").splitlines()) == 3


def test_a_health_check_finds_it_ill_and_well(engine: Engine) -> None:
    engine.run(
        *("--name", "box", "--health-cmd", "test -e /tmp/well", "--health-interval", "300ms"),
        *("--health-retries", "2", IMAGE, "sleep", "1000"),
    )

    def health() -> object:
        return engine.state("box")["Health"]["Status"]

    await_that(lambda: health() == "unhealthy", 30, "it is ill")
    engine.says("exec", "box", "touch", "/tmp/well")
    await_that(lambda: health() == "healthy", 30, "it is well")


def test_rm_removes_it_when_it_ends(engine: Engine) -> None:
    engine.run("--rm", "--name", "box", IMAGE, "sh", "-c", "sleep 0.3; exit 3")
    # Docker may have removed it before it is asked.
    waited = engine.docker("wait", "box")
    assert waited.stdout.strip() in (b"3", b""), waited
    await_that(lambda: engine.says("ps", "-aq") == "", 30, "it is removed")


def test_namespaces_are_shared_as_asked(engine: Engine) -> None:
    engine.run("--name", "first", IMAGE, "sleep", "1234")
    words = ("--rm", "--pid", "container:first", "--network", "container:first", IMAGE)
    shared = engine.says("run", *words, "sh", "-c", "ps; readlink /proc/self/ns/net")
    assert "sleep 1234" in shared
    own = engine.says("exec", "first", "readlink", "/proc/self/ns/net")
    assert shared.splitlines()[-1] == own


def test_flags_reach_the_container(engine: Engine, enclosure: Enclosure) -> None:
    flags = (
        *("--init", "--read-only", "--tmpfs", "/tmp", "--user", "1000:1000", "--cap-drop", "ALL"),
        *("--network", "none", "--hostname", "quay", "--env", "A=b", "--workdir", "/tmp"),
        *("--ulimit", "nofile=100:200", "--shm-size", "1m", "--label", "a=b"),
    )
    look = (
        "cat /proc/1/comm; touch /tmp/a; touch /a 2>/dev/null || echo refused; id -u;"
        "grep CapEff /proc/self/status; ls /sys/class/net; hostname; echo $A; pwd; ulimit -n;"
        "ulimit -Hn; grep -o size=1024k /proc/mounts"
    )
    assert engine.says("run", "--rm", *flags, IMAGE, "sh", "-c", look).splitlines() == [
        *("docker-init", "refused", "1000", "CapEff:\t0000000000000000", "lo", "quay", "b", "/tmp"),
        *("100", "200", "size=1024k"),
    ]
    inside = enclosure.run("readlink", "/proc/self/ns/net").stdout.decode().strip()
    host = ("run", "--rm", "--network", "host", IMAGE, "readlink", "/proc/self/ns/net")
    assert engine.says(*host) == inside
