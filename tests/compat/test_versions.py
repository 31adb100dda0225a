"""Versions that share no protocol: nobody is harmed, everybody is told, the right one serves on."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.compat import PROTOCOLS, SCHEMA, SCHEMA_NEWEST
from lighter.proto.version import VERSION
from tests import images
from tests.compat.releases import make_release, started
from tests.compat.test_change import WAIT_S, await_status, switch, tasks
from tests.harness import BIN, Lighterd, await_that
from tests.lives import await_handler, hold_still

OTHER = "9.0.0"
OURS = ", ".join(map(str, PROTOCOLS))


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    """Where versions are installed: this one, and one that speaks another protocol."""
    cores = tmp_path / "cores"
    make_release(cores, VERSION)
    make_release(cores, OTHER, PROTOCOLS=(99,))
    return cores


@pytest.fixture
def one(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    """An instance, not started. Whoever served last, this checkout's manager cleans up."""
    made = make_lighterd()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill9()
    made.use(BIN)


def begin(lighterd: Lighterd, name: str, script: str) -> None:
    """Through the command line of the release in use: the tests' client speaks our versions."""
    lighterd.ctl("images", "import", str(images.busybox_archive()), check=True)
    lighterd.ctl("run", "-d", "--name", name, images.REFERENCE, "sh", "-c", script, check=True)


def system(lighterd: Lighterd, *words: str) -> Any:
    return json.loads(lighterd.ctl(*words, "--format", "json", check=True).stdout)


def shims(lighterd: Lighterd) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in system(lighterd, "system", "shims")}


def version_of(lighterd: Lighterd) -> str:
    return str(system(lighterd, "version")["server"]["version"])


def recorded(lighterd: Lighterd, name: str) -> dict[str, Any]:
    record = lighterd.state / "tasks/default" / name / "shim.json"
    value: dict[str, Any] = json.loads(record.read_text())
    return value


def test_a_shim_says_what_it_speaks_in_record_and_list(
    one: Lighterd,
) -> None:
    lighterd = one.start()
    begin(lighterd, "c", "sleep 1000")
    record = recorded(lighterd, "c")
    assert (record["version"], record["protocols"]) == (VERSION, list(PROTOCOLS))
    row = shims(lighterd)["c"]
    assert (row["state"], row["reason"], row["version"]) == ("connected", "", VERSION)
    assert (row["protocol"], row["protocols"]) == (max(PROTOCOLS), list(PROTOCOLS))
    assert row["pss_bytes"] > 0 and row["started_at"]
    head, line = lighterd.ctl("system", "shims", check=True).stdout.decode().splitlines()
    assert head.split()[3:] == ["STATE", "VERSION", "PROTOCOL", "AGE", "PSS", "REASON"]
    assert line.split()[:2] == ["default", "c"] and VERSION in line and "second" in line


def test_a_shim_of_the_first_release_is_known_by_what_it_does_not_say(
    one: Lighterd, first: Path
) -> None:
    lighterd = one
    lighterd.use(first)
    lighterd.start()
    begin(lighterd, "c", "sleep 1000")
    assert "protocols" not in recorded(lighterd, "c")
    switch(lighterd, BIN, hard=True)
    await_that(lambda: shims(lighterd)["c"]["state"] == "connected", WAIT_S, "it is adopted")
    row = shims(lighterd)["c"]
    assert (row["version"], row["protocol"], row["protocols"]) == ("0.1.0", 1, [1])
    assert system(lighterd, "upgrade", "check")["can_take_over"]


@pytest.mark.parametrize("theirs", [True, False], ids=["their shim", "our shim"])
def test_a_shim_without_a_common_version_is_left_running(
    one: Lighterd, cores: Path, theirs: bool
) -> None:
    """Refused politely either way; the manager that understands it finds it as it was."""
    before, after = (cores / OTHER, BIN) if theirs else (BIN, cores / OTHER)
    lighterd = one
    lighterd.use(before)
    lighterd.start()
    begin(
        lighterd, "c", "n=0; until [ -e /end ]; do n=$((n+1)); echo $n; usleep 10000; done; exit 7"
    )
    pid, own_shims = tasks(lighterd)["c"]["pid"], lighterd.shims()
    switch(lighterd, after, hard=True)
    await_that(lambda: shims(lighterd)["c"]["state"] == "refused", WAIT_S, "it is refused")
    row, task = shims(lighterd)["c"], tasks(lighterd)["c"]
    version, spoken, ours = (OTHER, "99", OURS) if theirs else (VERSION, OURS, "99")
    reason = f"its shim (version {version}) speaks protocol {spoken}, this manager {ours}"
    assert (row["version"], row["protocol"], row["reason"]) == (version, 0, reason)
    assert (task["status"], task["pid"], task["reason"]) == ("unknown", pid, reason)
    refused = lighterd.ctl("kill", "c")
    assert refused.returncode == 1 and reason in refused.stderr.decode()
    # It is not shown only: it is alive, is written to its log, and others are served meanwhile.
    assert lighterd.shims() == own_shims
    log = lighterd.root / "logs/default/c"
    size = sum(file.stat().st_size for file in log.iterdir())
    await_that(
        lambda: sum(file.stat().st_size for file in log.iterdir()) > size, WAIT_S, "it writes on"
    )
    begin(lighterd, "other", "sleep 1000")
    assert tasks(lighterd)["other"]["status"] == "running"
    lighterd.ctl("rm", "-f", "other", check=True)
    switch(lighterd, before, hard=False)
    await_status(lighterd, "c", "running")
    assert tasks(lighterd)["c"]["pid"] == pid
    lighterd.ctl("exec", "c", "touch", "/end", check=True)
    await_status(lighterd, "c", "stopped")
    assert tasks(lighterd)["c"]["exit_status"] == 7
    lines = lighterd.ctl("logs", "c", check=True).stdout.split()
    assert lines == [b"%d" % n for n in range(1, len(lines) + 1)]
    lighterd.ctl("rm", "c", check=True)


def test_its_end_under_a_manager_that_does_not_understand_it_is_exact(
    one: Lighterd, cores: Path
) -> None:
    """It waits for one that does: its exit is told there, with the code it had."""
    lighterd = one
    lighterd.use(cores / OTHER)
    lighterd.start()
    begin(lighterd, "c", "trap 'exit 6' TERM; while :; do usleep 20000; done")
    pid = tasks(lighterd)["c"]["pid"]
    await_handler(pid, signal.SIGTERM)
    switch(lighterd, BIN, hard=True)
    await_that(lambda: shims(lighterd)["c"]["state"] == "refused", WAIT_S, "it is refused")
    os.kill(pid, signal.SIGTERM)
    await_that(lambda: not os.path.exists(f"/proc/{pid}"), WAIT_S, "it has ended")
    assert tasks(lighterd)["c"]["status"] == "unknown"
    assert len(lighterd.shims()) == 1
    switch(lighterd, cores / OTHER, hard=True)
    await_status(lighterd, "c", "stopped")
    assert (tasks(lighterd)["c"]["exit_status"], tasks(lighterd)["c"]["cause"]) == (6, "")
    lighterd.ctl("rm", "c", check=True)


# which version serves


def test_f62_the_version_that_can_adopt_serves_and_says_why(one: Lighterd, cores: Path) -> None:
    lighterd = one
    lighterd.use(started(cores, VERSION))
    lighterd.start()
    begin(lighterd, "c", "sleep 1000")
    newer = started(cores, OTHER)
    switch(lighterd, newer, hard=True)
    # The installed command line becomes the manager's own, as what units and scriptlets run does.
    await_status(lighterd, "c", "running")
    assert system(lighterd, "version")["client"]["version"] == VERSION
    lighterd.ctl("system", "reload", check=True)
    assert version_of(lighterd) == VERSION
    why = (
        f"{OTHER}: shim of default/c (version {VERSION}) speaks protocol {OURS}, "
        f"version {OTHER} speaks 99"
    )
    assert system(lighterd, "system", "info")["stands_in"] == why
    log = lighterd.log_end()
    assert f"lighterd: version {OTHER} cannot take over: {why.partition(': ')[2]}; " in log
    assert f"stands in for version {why}" in log
    # It is a whole manager: containers come and go, and inherit nothing of this.
    image = lighterd.import_busybox()
    seen = lighterd.ctl("run", "--rm", image, "env", check=True).stdout.decode()
    assert "LIGHTER" not in seen
    lighterd.ctl("rm", "-f", "c", check=True)
    lighterd.bin = newer
    # With nothing left that only it understands, the next start is the installed version's.
    assert lighterd.stop() == 0
    lighterd.use(newer)
    lighterd.start()
    assert version_of(lighterd) == OTHER
    assert system(lighterd, "system", "info")["stands_in"] == ""


def test_the_installed_ctl_stops_containers_of_a_manager_that_stands_in(
    one: Lighterd, cores: Path
) -> None:
    """Of one that is down too, which is started for that and is not left running."""
    lighterd = one
    lighterd.use(started(cores, VERSION))
    lighterd.start()
    newer = started(cores, OTHER)
    manager = f"{newer}/lighterd --root {lighterd.root} --state {lighterd.state}"
    stop = ("system", "stop-containers", "--timeout", "20s", "--manager", manager)
    for name in ("a", "b"):
        begin(lighterd, name, "trap 'exit 5' TERM; while :; do usleep 20000; done")
        await_handler(tasks(lighterd)[name]["pid"], signal.SIGTERM)
    switch(lighterd, newer, hard=True)
    await_status(lighterd, "b", "running")
    lighterd.ctl("kill", "-s", "TERM", "a", check=True)
    await_status(lighterd, "a", "stopped")
    lighterd.kill9()
    done = lighterd.ctl("--connect-timeout", "1s", *stop, timeout=60)
    assert done.stdout == b"stopped default/b (exit status 5)\n", done.stderr.decode()
    assert not (lighterd.state / "lighterd.pid").exists()
    lighterd.use(newer)
    lighterd.start()
    assert tasks(lighterd)["b"]["exit_status"] == 5


@pytest.mark.parametrize("harm", ["written by others", "of others", "no path", "of another ctl"])
def test_a_ctl_that_others_could_have_put_there_is_not_run(
    one: Lighterd, cores: Path, harm: str
) -> None:
    lighterd = one
    lighterd.use(cores / VERSION)
    lighterd.start()
    lighterd.bin = cores / OTHER
    told = lighterd.state / "ctl"
    assert told.read_text() == f"{cores / VERSION}/ctl\n"
    match harm:
        case "written by others":
            told.chmod(0o666)
        case "of others":
            os.chown(cores / VERSION / "ctl", 65534, 65534)
        case "no path":
            told.write_text("ctl\n")
        case _:  # which does not speak with it either, and does not go on looking
            told.write_text(f"{cores / OTHER}/ctl\n")
    alien = lighterd.ctl("version")
    assert alien.returncode == 1 and alien.stderr.count(b"\n") == 1
    assert f"speaks versions {list(PROTOCOLS)} of the protocol" in alien.stderr.decode()


def test_a_kept_version_that_cannot_be_started_does_not_stand_in(
    one: Lighterd, cores: Path
) -> None:
    """Its interpreter may be gone: the installed version serves then, and says so."""
    lighterd = one
    lighterd.use(cores / VERSION)
    lighterd.start()
    begin(lighterd, "c", "sleep 1000")
    program = cores / VERSION / "lighterd"
    text = program.read_text()
    program.write_text("#!/no/such/python\n" + text)
    switch(lighterd, started(cores, OTHER), hard=True)
    await_that(lambda: shims(lighterd)["c"]["state"] == "refused", WAIT_S, "it is refused")
    assert version_of(lighterd) == OTHER
    assert f"start {program}: No such file or directory; it does not stand in" in (
        lighterd.log_end()
    )
    program.write_text(text)
    switch(lighterd, cores / VERSION, hard=True)
    await_status(lighterd, "c", "running")


def test_without_a_kept_version_that_can_the_installed_one_serves(
    one: Lighterd, cores: Path
) -> None:
    lighterd = one
    lighterd.use(cores / VERSION)
    lighterd.start()
    begin(lighterd, "c", "sleep 1000")
    (cores / VERSION / "lighterd").chmod(0o644)
    switch(lighterd, started(cores, OTHER), hard=True)
    await_that(lambda: shims(lighterd)["c"]["state"] == "refused", WAIT_S, "it is refused")
    assert (version_of(lighterd), tasks(lighterd)["c"]["status"]) == (OTHER, "unknown")
    (cores / VERSION / "lighterd").chmod(0o755)
    switch(lighterd, cores / VERSION, hard=True)
    await_status(lighterd, "c", "running")


def test_a_version_chosen_by_hand_serves(one: Lighterd, cores: Path) -> None:
    lighterd = one
    lighterd.use(cores / VERSION)
    lighterd.start()
    begin(lighterd, "c", "sleep 1000")
    switch(lighterd, cores / OTHER, hard=True)
    assert version_of(lighterd) == OTHER
    switch(lighterd, cores / VERSION, hard=True)
    await_status(lighterd, "c", "running")


def test_a_database_that_is_too_new_is_served_by_the_version_that_knows_it(
    one: Lighterd, cores: Path
) -> None:
    """Gone back too far: the newer version, still installed, goes on."""
    old = "0.0.1"
    make_release(cores, old, SCHEMA=SCHEMA, SCHEMA_NEWEST=SCHEMA_NEWEST)
    site = cores / old / "site/lighter/proto/compat.py"
    lighterd = one
    lighterd.use(cores / VERSION)
    lighterd.start()
    begin(lighterd, "c", "sleep 1000")
    text = site.read_text()
    site.write_text(text.replace(f"SCHEMA_NEWEST = {SCHEMA_NEWEST}", "SCHEMA_NEWEST = 0"))
    switch(lighterd, started(cores, old), hard=True)
    assert version_of(lighterd) == VERSION
    assert f"the database has schema {SCHEMA}" in lighterd.log_end()
    await_status(lighterd, "c", "running")


# ctl upgrade check


def check(lighterd: Lighterd, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return lighterd.ctl("upgrade", "check", *words)


def test_a_check_before_anything_is_touched(one: Lighterd, cores: Path) -> None:
    lighterd = one.start()
    for name in ("a", "b"):
        begin(lighterd, name, "sleep 1000")
    fine = check(lighterd, str(cores / VERSION))
    assert (fine.returncode, fine.stdout.decode()) == (
        0,
        f"version {VERSION} can take over from {VERSION}\nrunning shims: 2, 2 can be adopted\n",
    )
    refused = check(lighterd, str(cores / OTHER))
    assert refused.returncode == 1
    assert refused.stdout.decode().splitlines() == [
        f"version {OTHER} cannot take over from {VERSION}",
        "running shims: 2, 0 can be adopted",
        *(
            f"  shim of default/{name} (version {VERSION}) speaks protocol {OURS}, "
            f"version {OTHER} speaks 99"
            for name in ("a", "b")
        ),
        f"  no way back: version {VERSION} cannot adopt shims of version {OTHER}",
    ]
    found = json.loads(check(lighterd, str(cores / OTHER), "--format", "json").stdout)
    assert (found["can_take_over"], found["shims"]) == (False, 2)
    assert [(row["id"], row["protocols"]) for row in found["refused"]] == [
        ("a", list(PROTOCOLS)),
        ("b", list(PROTOCOLS)),
    ]
    # Without shims there is nothing to adopt, and still no way back.
    for name in ("a", "b"):
        lighterd.ctl("rm", "-f", name, check=True)
    alone = check(lighterd, str(cores / OTHER))
    assert alone.returncode == 0 and b"no way back" in alone.stdout


def test_a_check_counts_a_shim_that_nothing_is_known_of(one: Lighterd, cores: Path) -> None:
    """By what it has said itself, else by its record; without either nobody can tell."""
    lighterd = one.start()
    begin(lighterd, "c", "sleep 1000")
    record = lighterd.state / "tasks/default/c/shim.json"
    sound = record.read_bytes()
    record.write_bytes(b"{")
    assert check(lighterd).stdout.endswith(b"running shims: 1, 1 can be adopted\n")
    (shim,) = lighterd.shims()
    hold_still(shim)
    try:
        lighterd.kill9()
        lighterd.start()
        unknown = check(lighterd)
        assert unknown.returncode == 1
        assert b"running shims: 1, 0 can be adopted\n  shim of default/c: it is not" in (
            unknown.stdout
        )
        record.write_bytes(sound)
        assert check(lighterd).returncode == 0
        assert check(lighterd, str(cores / OTHER)).returncode == 1
    finally:
        os.kill(shim, signal.SIGCONT)
    await_status(lighterd, "c", "running")


def test_a_check_of_the_database_forward_and_back(one: Lighterd, cores: Path) -> None:
    lighterd = one.start()
    make_release(cores, "8.0.0", SCHEMA=SCHEMA + 2, SCHEMA_NEWEST=SCHEMA + 3)
    make_release(cores, "0.0.9", SCHEMA=SCHEMA, SCHEMA_NEWEST=SCHEMA)
    forward = check(lighterd, str(cores / "8.0.0"))
    assert forward.returncode == 0
    assert f"no way back: version 8.0.0 brings the database to schema {SCHEMA + 2}" in (
        forward.stdout.decode()
    )
    assert check(lighterd, str(cores / "0.0.9")).returncode == 0
    lighterd.stop()
    database(lighterd, SCHEMA + 1)
    lighterd.start()
    back = check(lighterd, str(cores / "0.0.9"))
    assert back.returncode == 1
    assert f"the database has schema {SCHEMA + 1}, version 0.0.9 works with {SCHEMA}" in (
        back.stdout.decode()
    )


def database(lighterd: Lighterd, version: int) -> None:
    """What a release that adds something makes of it."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
        opened.execute("CREATE TABLE of_the_next_release(name TEXT)")
        opened.execute(f"PRAGMA user_version = {version}")
        opened.commit()


def test_a_check_of_something_else_says_what_is_wrong(lighterd: Lighterd, tmp_path: Path) -> None:
    text = tmp_path / "text.rpm"
    text.write_text("no rpm")
    (tmp_path / "site/lighter/proto").mkdir(parents=True)
    for path, words in (
        (tmp_path / "missing.rpm", "there is no such file"),
        (text, "it is no rpm"),
        (tmp_path, "no version.py; it is no version of Lighter, or one older than 0.2.0"),
        (tmp_path / "site", "it has neither site/ nor a lighter rpm"),
    ):
        refused = check(lighterd, str(path))
        assert refused.returncode == 1
        said = refused.stderr.decode()
        assert said.startswith("ctl: read ") and words in said and said.count("\n") == 1, said
    for literals in ("PROTOCOLS = ()", "PROTOCOLS = open('/etc/passwd')", "PROTOCOLS = (1"):
        proto = tmp_path / "site/lighter/proto"
        (proto / "version.py").write_text('VERSION = "1.0.0"\n')
        (proto / "compat.py").write_text(f"SCHEMA = 1\nSCHEMA_NEWEST = 2\n{literals}\n")
        refused = check(lighterd, str(tmp_path))
        assert refused.returncode == 1 and b"read version" in refused.stderr, refused
