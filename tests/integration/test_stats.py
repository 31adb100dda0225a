"""What containers use, as users read it: stats, tasks metrics, top."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests import census, cgroups
from tests.harness import Lighterd, await_that
from tests.images import REFERENCE
from tests.lives import hold_still

BUSY = "while :; do :; done"


@pytest.fixture(scope="module")
def lighterd() -> Iterator[Lighterd]:
    """Two containers: `busy` takes one processor and 20 MB, `idle` sleeps; `done` has ended."""
    made = Lighterd(census.Owners()).start()
    try:
        made.import_busybox()
        hog = f"x=$(head -c 20000000 /dev/zero | tr '\\0' x); touch /ready; {BUSY}"
        made.ctl("run", "-d", REFERENCE, "busy", "sh", "-c", hog, check=True)
        made.ctl("run", "-d", REFERENCE, "idle", "sleep", "1000", check=True)
        made.ctl("run", REFERENCE, "done", "true", check=True)
        await_that(
            lambda: made.ctl("exec", "busy", "test", "-e", "/ready").returncode == 0, 60, "it is up"
        )
        yield made
    finally:
        made.close()


def stats(lighterd: Lighterd, *words: str) -> dict[str, dict[str, float]]:
    shown = lighterd.ctl("stats", "--no-stream", "--format", "json", *words, check=True).stdout
    return {row["id"]: row for row in map(json.loads, shown.splitlines())}


def test_stats_tell_the_busy_from_the_idle(lighterd: Lighterd) -> None:
    rows = stats(lighterd)
    assert rows.keys() == {"busy", "idle"}
    busy, idle = rows["busy"], rows["idle"]
    assert 1 < busy["cpu_percent"] < 110 and idle["cpu_percent"] < 1
    assert busy["memory_bytes"] > 20_000_000 > idle["memory_bytes"] > 0
    assert busy["memory_limit_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert idle["pids"] == 1
    assert idle["rx_bytes"] == 0, "its own network has lo alone"
    table = lighterd.ctl("stats", "--no-stream", "idle", check=True).stdout.decode().splitlines()
    assert re.split(r"\s{2,}", table[0].strip()) == [
        *("CONTAINER", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS")
    ]
    assert re.match(r"idle +0\.\d\d% +[\d.]+ [KM]iB / [\d.]+ [GT]iB +\d+\.\d\d% +0B / 0B", table[1])
    shape = ("--format", "{{.Name}}={{.PIDs}}")
    assert lighterd.ctl("stats", "--no-stream", *shape, "idle", check=True).stdout == b"idle=1\n"
    assert stats(lighterd, "-a").keys() == {"busy", "idle"}, "done has no task any more"
    missing = lighterd.ctl("stats", "--no-stream", "absent")
    assert missing.returncode == 1 and b"absent" in missing.stderr


def test_stats_go_on_and_end_with_ctrl_c(lighterd: Lighterd) -> None:
    with subprocess.Popen(
        lighterd.ctl_argv("stats", "--format", "{{.Name}}", "idle"), stdout=subprocess.PIPE
    ) as shown:
        assert shown.stdout is not None
        assert [shown.stdout.readline() for _ in range(2)] == [b"idle\n"] * 2
        shown.send_signal(signal.SIGINT)
        assert shown.wait(20) == 130


def test_a_stuck_shim_holds_no_measurement_up(lighterd: Lighterd) -> None:
    with lighterd.client() as client:
        shims = {row["id"]: row for row in client.call("system", "shims")["shims"]}
    hold_still(shims["idle"]["pid"])
    try:
        begun = time.monotonic()
        assert stats(lighterd).keys() == {"busy", "idle"}
        assert b"pids.current" in lighterd.ctl("tasks", "metrics", "idle", check=True).stdout
        assert b"sleep 1000" in lighterd.ctl("top", "idle", check=True).stdout
        assert time.monotonic() - begun < 15, "a deadline of a shim's is longer"
    finally:
        os.kill(shims["idle"]["pid"], signal.SIGCONT)


def test_metrics_are_printed_as_ctr_prints_them(lighterd: Lighterd) -> None:
    ours = lighterd.ctl("tasks", "metrics", "idle", check=True).stdout.decode()
    ctr = ["ctr", "--address", lighterd.grpc_address, "-n", "default", "tasks", "metrics", "idle"]
    theirs = subprocess.run(ctr, capture_output=True, check=True, timeout=30).stdout.decode()

    def plain(text: str) -> str:
        return re.sub(r" +\n", "\n", re.sub(r" +", " ", re.sub(r"\d+", "N", text)))

    assert plain(ours) == plain(theirs)
    assert lighterd.ctl("tasks", "metrics", "done").returncode == 1


def test_top_knows_each_process_by_both_numbers(lighterd: Lighterd) -> None:
    lighterd.ctl("exec", "-d", "-u", "user", "idle", "sleep", "4321", check=True)
    found = json.loads(lighterd.ctl("top", "--format", "json", "idle", check=True).stdout)
    by_args = {" ".join(row["args"]): row for row in found}
    assert by_args["sleep 1000"]["container_pid"] == 1
    added = by_args["sleep 4321"]
    assert added["uid"] == 1000 and 1 < added["container_pid"] < added["pid"]
    inside = lighterd.ctl("exec", "idle", "cat", f"/proc/{added['container_pid']}/cmdline").stdout
    assert inside == b"sleep\x004321\x00"
    header = lighterd.ctl("top", "idle", check=True).stdout.split(b"\n")[0].split()
    assert header == [b"UID", b"PID", b"INSIDE", b"PPID", b"STAT", b"TIME", b"CMD"]


def test_a_container_is_measured_whole_wherever_its_init_has_gone(lighterd: Lighterd) -> None:
    lighterd.ctl("run", "-d", REFERENCE, "deep", "sleep", "1000", check=True)
    lighterd.ctl("exec", "-d", "deep", "sleep", "4322", check=True)
    with lighterd.client() as client:
        pid = client.call("tasks", "get", id="deep")["task"]["pid"]
    below = cgroups.of_process(pid, "pids") / "init.scope"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(pid))
    for words in (("top", "deep"), ("tasks", "ps", "--format", "json", "deep")):
        shown = lighterd.ctl(*words, check=True).stdout
        assert b"1000" in shown and b"4322" in shown, words
    assert stats(lighterd, "deep")["deep"]["pids"] == 2
    lighterd.ctl("rm", "-f", "deep", check=True)


def test_top_tells_the_containers_own_number_of_what_is_nested_in_it(lighterd: Lighterd) -> None:
    nested = ("unshare", "-p", "-f", "sleep", "4323")
    lighterd.ctl("run", "-d", "--privileged", REFERENCE, "outer", *nested, check=True)

    def rows() -> dict[str, dict[str, int]]:
        shown = lighterd.ctl("top", "--format", "json", "outer", check=True).stdout
        return {row["args"][0]: row for row in json.loads(shown)}

    await_that(lambda: "sleep" in rows(), 20, "it has begun")
    assert rows()["unshare"]["container_pid"] == 1
    inner = rows()["sleep"]["container_pid"]
    assert inner > 1
    seen = lighterd.ctl("exec", "outer", "cat", f"/proc/{inner}/cmdline", check=True).stdout
    assert seen == b"sleep\x004323\x00"
    lighterd.ctl("rm", "-f", "outer", check=True)


def test_stats_go_on_when_one_of_them_is_removed(lighterd: Lighterd) -> None:
    lighterd.ctl("run", "-d", REFERENCE, "gone", "sleep", "1000", check=True)
    shape = ("--format", "{{.Name}}")
    with subprocess.Popen(
        lighterd.ctl_argv("stats", *shape, "gone", "idle"), stdout=subprocess.PIPE
    ) as shown:
        assert shown.stdout is not None
        assert {shown.stdout.readline() for _ in range(2)} == {b"gone\n", b"idle\n"}
        lighterd.ctl("rm", "-f", "gone", check=True)
        alone = 0  # a round may have been under way
        while alone < 3:
            alone = alone + 1 if shown.stdout.readline() == b"idle\n" else 0
            assert shown.poll() is None
        shown.send_signal(signal.SIGINT)
        assert shown.wait(20) == 130
    lighterd.ctl("run", "-d", REFERENCE, "gone", "sleep", "1000", check=True)
    with subprocess.Popen(
        lighterd.ctl_argv("stats", *shape, "gone"), stdout=subprocess.PIPE
    ) as shown:
        assert shown.stdout is not None
        assert shown.stdout.readline() == b"gone\n"
        lighterd.ctl("rm", "-f", "gone", check=True)
        assert shown.wait(20) == 0, "there is no more to show"


def test_what_the_manager_costs_beside_the_containers(lighterd: Lighterd) -> None:
    shown = json.loads(lighterd.ctl("system", "overhead", "--format", "json", check=True).stdout)
    assert {row["id"] for row in shown["shims"]} == {"busy", "idle"}
    assert shown["manager"]["pid"] == lighterd.pid
    parts = [shown["shims_pss_bytes"], *(shown[name]["pss_bytes"] for name in OWN)]
    assert shown["total_pss_bytes"] == sum(parts) and min(parts) > 1 << 20
    text = lighterd.ctl("system", "overhead", check=True).stdout.decode()
    assert "2 shims: " in text and " each; with the manager " in text


OWN = ("manager", "spawner")


def test_plugins_are_those_that_ctr_lists(lighterd: Lighterd) -> None:
    ours = lighterd.ctl("plugins", "ls", check=True).stdout.decode()
    ctr = ["ctr", "--address", lighterd.grpc_address, "plugins", "ls"]
    theirs = subprocess.run(ctr, capture_output=True, check=True, timeout=30).stdout.decode()
    assert [line.split() for line in ours.splitlines()] == [
        line.split() for line in theirs.splitlines()
    ]


def test_a_shim_by_ctrs_words(lighterd: Lighterd) -> None:
    found = json.loads(lighterd.ctl("shim", "--id", "idle", "state", check=True).stdout)
    assert found["task"]["status"] == "running" and found["shim"]["state"] == "connected"
    done = lighterd.ctl("shim", "--id", "idle", "exec", "sh", "-c", "echo out; exit 4")
    assert (done.returncode, done.stdout) == (4, b"out\n")
    refused = lighterd.ctl("shim", "--id", "idle", "delete")
    assert refused.returncode == 1 and b"running" in refused.stderr
    assert b"uuid" in lighterd.ctl("info", check=True).stdout


def test_ps_has_ctrs_columns_and_as_json_the_containers_own_numbers(lighterd: Lighterd) -> None:
    table = lighterd.ctl("tasks", "ps", "idle", check=True).stdout.split(b"\n")
    assert table[0].split() == [b"PID", b"INFO"]
    found = json.loads(lighterd.ctl("tasks", "ps", "--format", "json", "idle", check=True).stdout)
    (first,) = [row for row in found if row["args"] == ["sleep", "1000"]]
    assert first["container_pid"] == 1 and first["pid"] > 1
