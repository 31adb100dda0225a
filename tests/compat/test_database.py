"""The database over versions: a migration killed anywhere, the way back, and no further back."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lighter.proto.compat import SCHEMA, SCHEMA_NEWEST
from lighter.proto.version import VERSION
from tests.compat.releases import make_release
from tests.compat.test_change import await_status, begin, switch, tasks
from tests.harness import BIN, Lighterd, await_that
from tests.lives import await_handler

NEXT, LATER = "8.0.0", "9.0.0"
# What a release may do: tables, columns with a default, indexes.
ADDS = (
    "CREATE TABLE later(name TEXT PRIMARY KEY);"
    "ALTER TABLE containers ADD COLUMN later TEXT NOT NULL DEFAULT 'of before';"
    "CREATE INDEX containers_by_image ON containers(image)"
)
POINTS = ("migrate.copied", "migrate.changed", "migrate.versioned", "migrate.committed")


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    """The next release, with a migration, and the one after it, with two."""
    cores = tmp_path / "cores"
    newer = {"SCHEMA": SCHEMA + 1, "SCHEMA_NEWEST": SCHEMA + 2}
    make_release(cores, NEXT, ADDS, **newer)
    return cores


@pytest.fixture
def one(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    made = make_lighterd().start()
    yield made
    made.use(BIN)


def schema(lighterd: Lighterd) -> tuple[int, bool]:
    """The version that the database says it has, and whether it has what the next one adds."""
    with closing(sqlite3.connect(f"file:{lighterd.root}/lighter.db?mode=ro", uri=True)) as opened:
        version = int(opened.execute("PRAGMA user_version").fetchone()[0])
        names = {row[0] for row in opened.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in opened.execute("PRAGMA table_info(containers)")}
    added = ("later" in names, "containers_by_image" in names, "later" in columns)
    assert len(set(added)) == 1, f"mixed: {added}"
    return version, added[0]


def version_of(lighterd: Lighterd) -> str:
    shown = json.loads(lighterd.ctl("version", "--format", "json", check=True).stdout)
    return str(shown["server"]["version"])


@pytest.mark.parametrize("point", POINTS)
def test_f39_a_manager_killed_during_a_migration(one: Lighterd, cores: Path, point: str) -> None:
    """Old or new schema, never mixed; either release goes on from there, containers run on."""
    lighterd = one
    begin(lighterd, "c", "trap 'exit 5' TERM; while :; do usleep 20000; done")
    pid = tasks(lighterd)["c"]["pid"]
    await_handler(pid, signal.SIGTERM)
    lighterd.kill9()
    lighterd.use(cores / NEXT)
    lighterd.launch(FAULT=f"{point}:abort")
    assert lighterd.process is not None
    assert lighterd.process.wait(30) == -9, lighterd.log_end()
    new = point == "migrate.committed"
    assert schema(lighterd) == (SCHEMA + new, new)
    # Back to the release before: it works on whichever it finds.
    lighterd.use(BIN)
    lighterd.start()
    await_status(lighterd, "c", "running")
    assert tasks(lighterd)["c"]["pid"] == pid
    begin(lighterd, "made-by-the-old", "exit 4")
    await_status(lighterd, "made-by-the-old", "stopped")
    switch(lighterd, cores / NEXT, hard=True)
    assert version_of(lighterd) == NEXT
    assert schema(lighterd) == (SCHEMA + 1, True)
    await_status(lighterd, "c", "running")
    assert tasks(lighterd)["made-by-the-old"]["exit_status"] == 4
    with closing(sqlite3.connect(f"file:{lighterd.root}/lighter.db?mode=ro", uri=True)) as opened:
        rows = opened.execute("SELECT DISTINCT later FROM containers").fetchall()
    assert rows == [("of before",)]
    lighterd.ctl("kill", "-s", "TERM", "c", check=True)
    await_status(lighterd, "c", "stopped")
    assert tasks(lighterd)["c"]["exit_status"] == 5


def test_f39_an_error_during_a_migration_ends_the_start_in_words(
    one: Lighterd, cores: Path
) -> None:
    lighterd = one
    assert lighterd.stop() == 0
    lighterd.use(cores / NEXT)
    for point in POINTS:
        lighterd.launch(FAULT=f"{point}:error")
        assert lighterd.process is not None and lighterd.process.wait(30) == 1
        last = lighterd.log_end().rstrip("\n").rpartition("\n")[2]
        assert last.startswith("lighterd: ") and point in last, last
        new = point == "migrate.committed"
        assert schema(lighterd) == (SCHEMA + new, new)
    lighterd.use(BIN)
    lighterd.start()


def test_f39_back_by_one_release_and_forward_again(one: Lighterd, cores: Path) -> None:
    lighterd = one
    begin(lighterd, "c", "sleep 1000")
    switch(lighterd, cores / NEXT, hard=False)
    begin(lighterd, "made-by-the-new", "sleep 1000")
    copies = sorted(path.name for path in lighterd.root.glob("lighter.db.v*"))
    assert copies == [f"lighter.db.v{SCHEMA}"]
    switch(lighterd, BIN, hard=True)
    assert (version_of(lighterd), schema(lighterd)) == (VERSION, (SCHEMA + 1, True))
    assert {row["status"] for row in tasks(lighterd).values()} == {"running"}
    lighterd.ctl("rm", "-f", "made-by-the-new", check=True)
    begin(lighterd, "made-by-the-old", "sleep 1000")
    switch(lighterd, cores / NEXT, hard=True)
    running = {name for name, row in tasks(lighterd).items() if row["status"] == "running"}
    assert running == {"c", "made-by-the-old"}


def test_f39_further_back_is_refused_and_containers_run_on(
    make_lighterd: Callable[..., Lighterd], cores: Path
) -> None:
    """Chosen by hand: the installed lighterd would let a kept version go on."""
    lighterd = make_lighterd().start()
    begin(lighterd, "c", "n=0; while :; do n=$((n+1)); echo $n; usleep 10000; done")
    pid = tasks(lighterd)["c"]["pid"]
    twice = {"SCHEMA": SCHEMA + 2, "SCHEMA_NEWEST": SCHEMA + 3}
    make_release(cores, LATER, ADDS, **twice)
    with (cores / LATER / "site/lighter/daemon/metadata/schema.py").open("a") as text:
        text.write("\nMIGRATIONS = (*MIGRATIONS, 'CREATE TABLE latest(name TEXT)')\n")
    switch(lighterd, cores / LATER, hard=True)
    await_status(lighterd, "c", "running")
    lighterd.kill9()
    lighterd.use(BIN)
    lighterd.launch()
    assert lighterd.process is not None and lighterd.process.wait(30) == 1
    last = lighterd.log_end().rstrip("\n").rpartition("\n")[2]
    assert last.startswith("lighterd: open database") and last.endswith(
        f"its schema is version {SCHEMA + 2}, this release knows {SCHEMA} and works with "
        f"{SCHEMA_NEWEST} at most; go back by one release at a time"
    )
    assert schema(lighterd) == (SCHEMA + 2, True), "nothing was touched"
    log = lighterd.root / "logs/default/c"
    size = sum(file.stat().st_size for file in log.iterdir())
    await_that(
        lambda: sum(file.stat().st_size for file in log.iterdir()) > size, 10, "it writes on"
    )
    lighterd.use(cores / LATER)
    lighterd.start()
    await_status(lighterd, "c", "running")
    assert tasks(lighterd)["c"]["pid"] == pid


def test_f39_a_database_that_is_not_what_it_says_stays_as_it_was(
    one: Lighterd, cores: Path
) -> None:
    """Half migrated by something else: refused in words, and the release before works on it."""
    lighterd = one
    begin(lighterd, "c", "sleep 1000")
    assert lighterd.stop() == 0
    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
        opened.execute("CREATE TABLE later(name TEXT PRIMARY KEY)")
    lighterd.use(cores / NEXT)
    lighterd.launch()
    assert lighterd.process is not None and lighterd.process.wait(30) == 1
    assert "table later already exists; it stays as it was" in lighterd.log_end()
    lighterd.use(BIN)
    lighterd.start()
    await_status(lighterd, "c", "running")
