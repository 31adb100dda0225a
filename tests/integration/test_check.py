"""`ctl system check`: what is damaged, missing or nobody's is found, and repaired where nothing
that is needed goes with it.
"""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from lighter.proto.names import BROKEN_LABEL
from tests import lives
from tests.harness import Lighterd, await_that
from tests.integration.test_damage import kept_files, page_of, rows_of

STRAY = "0" * 64


def check(lighterd: Lighterd, *flags: str) -> tuple[int, dict[str, Any]]:
    """(exit status, what it says)."""
    done = lighterd.ctl("system", "check", *flags, "--format", "json")
    assert done.returncode in (0, 1) and not done.stderr, done
    said: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, said


def change(lighterd: Lighterd, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened, opened:
        assert opened.execute(statement, values).rowcount


def rot(blob: Path) -> None:
    """Other bytes, as many as before."""
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)


def number_of(lighterd: Lighterd, key: str) -> int:
    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
        row = opened.execute("SELECT number FROM snapshots WHERE key = ?", (key,)).fetchone()
        return int(row[0])


def test_a_sound_store_has_no_findings(lighterd: Lighterd) -> None:
    image = lighterd.import_busybox()
    lives.begin(lighterd, image, "c", "sleep", "1000")
    status, said = check(lighterd, "--repair")
    assert (status, said["findings"], said["found"], said["repaired"]) == (0, [], 0, 0)
    assert said["blobs"] >= 3 and said["bytes"] > 0 and said["snapshots"] >= 2
    shown = lighterd.ctl("system", "check", check=True).stdout.decode()
    assert shown.endswith("snapshots: no findings, 0 repaired\n")


def test_what_is_wrong_is_found_and_what_nobody_needs_is_repaired(lighterd: Lighterd) -> None:
    image = lighterd.import_busybox()
    pid = lives.begin(lighterd, image, "c", "sleep", "1000")
    for name in ("lone", "parent"):
        lighterd.ctl("snapshots", "prepare", f"{name}-work", check=True)
        lighterd.ctl("snapshots", "commit", name, f"{name}-work", check=True)
    lighterd.ctl("snapshots", "prepare", "child", "parent", check=True)
    blobs = lighterd.root / "content/blobs/sha256"
    layers = lighterd.root / "snapshots/overlayfs"
    damaged = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    rot(damaged)
    (blobs / STRAY).write_bytes(b"x")
    (blobs / "folder").mkdir()
    (layers / "777/fs").mkdir(parents=True)
    (layers / "777/fs/file").touch()
    (layers / "778/fs").mkdir(parents=True)
    mounted = layers / "778"
    lone, parent = number_of(lighterd, "lone"), number_of(lighterd, "parent")
    for number in (lone, parent):
        shutil.rmtree(layers / str(number))
    nowhere = "sha256:" + "1" * 64
    change(
        lighterd,
        "INSERT INTO images(namespace, name, media_type, digest, size_bytes, annotations, labels,"
        " created_at, updated_at) VALUES('default', 'lost', '', ?, 1, '{}', '{}', 0, 0)",
        nowhere,
    )
    expected = {
        ("content", f"sha256:{damaged.name}"): "repaired",
        ("file", str(blobs / STRAY)): "repaired",
        ("file", str(blobs / "folder")): "left",
        ("image", "lost"): "left",
        ("snapshot", "overlayfs/lone"): "repaired",
        ("snapshot", "overlayfs/parent"): "left",
        ("directory", str(layers / "777")): "repaired",
        ("directory", str(mounted)): "left",
    }
    subprocess.run(["mount", "--bind", mounted / "fs", mounted / "fs"], check=True)
    try:
        before = kept_files(lighterd)
        status, said = check(lighterd)
        found = {(one["kind"], one["name"]): one["outcome"] for one in said["findings"]}
        assert (status, found) == (1, dict.fromkeys(expected, "found"))
        assert kept_files(lighterd) == before
        status, said = check(lighterd, "--repair")
        found = {(one["kind"], one["name"]): one["outcome"] for one in said["findings"]}
        assert (status, found) == (1, expected), said
        assert (said["found"], said["repaired"]) == (8, 4)
        gone = {str(damaged), str(blobs / STRAY), str(layers / "777")}
        assert kept_files(lighterd) == before - gone
    finally:
        subprocess.run(["umount", mounted / "fs"], check=True)
    # What was named is dealt with by whoever knows better; what was damaged comes again.
    (blobs / "folder").rmdir()
    for argv in (("snapshots", "rm", "child"), ("snapshots", "rm", "parent"), ("rmi", "lost")):
        lighterd.ctl(*argv, check=True)
    assert lighterd.import_busybox() == image and damaged.exists()
    assert check(lighterd, "--repair")[0] == 0
    assert check(lighterd)[0] == 0
    assert lives.await_task(lighterd, "c", "running")["pid"] == pid
    assert lighterd.ctl("run", "--rm", image, "new", "sh", "-c", "exit 4").returncode == 4


def test_f53_a_database_that_is_damaged_while_it_is_used_is_found(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    """The check says so and repairs none of it; the next start does."""
    lighterd = make_lighterd().start()
    image = lighterd.import_busybox()
    pid = lives.begin(lighterd, image, "c", "sleep", "1000")
    page_of("tasks")(lighterd.root / "lighter.db")
    for flags in ((), ("--repair",)):
        status, said = check(lighterd, *flags)
        assert status == 1 and said["repaired"] == 0
        assert {one["kind"] for one in said["findings"]} == {"database"}, said
        for one in said["findings"]:
            assert one["name"] == str(lighterd.root / "lighter.db")
            assert one["outcome"] == "left"
            assert one["note"] == "the next start of the manager mends it"
    lighterd.kill9()  # whatever it has in memory
    lighterd.start()
    assert "lost: rows of tasks" in lives.ask(lighterd, "system.health")["loss"]
    lives.await_task(lighterd, "c", "running")
    assert lives.task(lighterd, "c")["pid"] == pid
    lighterd.ctl("system", "accept-loss", check=True)
    assert check(lighterd, "--repair") == (0, {**said, "findings": [], "found": 0})


def test_f53_a_repair_is_refused_while_rows_are_lost(lighterd: Lighterd) -> None:
    """What they named would be taken for nobody's."""
    lighterd.import_busybox()
    stray = lighterd.root / "content/blobs/sha256" / STRAY
    stray.write_bytes(b"x")
    change(lighterd, "INSERT INTO meta(key, value) VALUES('loss', 'lost: rows of content')")
    refused = lighterd.ctl("system", "check", "--repair")
    assert refused.returncode == 1 and b"`ctl system accept-loss` comes first" in refused.stderr
    assert check(lighterd)[1]["found"] == 1 and stray.exists()
    lighterd.ctl("system", "accept-loss", check=True)
    assert check(lighterd, "--repair")[0] == 0 and not stray.exists()


def flip(lighterd: Lighterd, table: str, column: str, where: str) -> None:
    """Set the highest bit of the text's last letter, which no check of SQLite's sees."""
    with closing(sqlite3.connect(lighterd.root / "lighter.db")) as opened:
        (text,) = opened.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
    data = text[:-1].encode() + bytes([ord(text[-1]) | 0x80])
    change(lighterd, f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {where}", data)


def test_f54_a_flipped_bit_in_a_text_harms_nobody_and_is_repaired(lighterd: Lighterd) -> None:
    """Each row is listed, as damaged where it can be; all others are what they were, and work."""
    image = lighterd.import_busybox()
    pids = {
        name: lives.begin(lighterd, image, name, "sleep", "1000") for name in ("task", "exec", "id")
    }
    for name in ("labels", "image"):
        lives.define(lighterd, image, name, "true")
    lighterd.ctl("tasks", "exec", "-d", "--exec-id", "x", "exec", "sleep", "1000", check=True)
    lighterd.ctl("images", "tag", image, "docker.io/library/bad:1", check=True)
    lighterd.kill9()
    harmed = (
        ("tasks", "state", "id = 'task'"),
        ("tasks", "id", "id = 'id'"),
        ("execs", "state", "exec_id = 'x'"),
        ("containers", "labels", "id = 'labels'"),
        ("containers", "image", "id = 'image'"),
        ("images", "media_type", "name LIKE '%bad:1'"),
        ("content", "labels", "labels LIKE '%gc.ref%'"),
    )
    for one in harmed:
        flip(lighterd, *one)
    lighterd.start()
    for name, pid in pids.items():
        await_that(lambda name=name, pid=pid: lives.task(lighterd, name).get("pid") == pid, 20, "")
        assert lives.await_task(lighterd, name, "running")["pid"] == pid
    assert broken(lighterd, "containers", "id") == {"labels": "labels", "image": "image"}
    assert broken(lighterd, "images", "name") == {"docker.io/library/bad:1": "media_type"}
    assert lighterd.ctl("run", "--rm", image, "new", "sh", "-c", "exit 4").returncode == 4
    blobs = lighterd.root / "content/blobs/sha256"
    kept = set(blobs.iterdir())
    lighterd.ctl("system", "prune", check=True)
    assert set(blobs.iterdir()) == kept
    status, said = check(lighterd)
    assert status == 1 and {one["outcome"] for one in said["findings"]} == {"found"}
    # Those of tasks and execs are written anew by what their shims have told.
    assert 4 <= said["found"] <= len(harmed)
    status, said = check(lighterd, "--repair")
    assert status == 0 and {one["outcome"] for one in said["findings"]} == {"repaired"}
    assert check(lighterd)[1]["found"] == 0
    assert not broken(lighterd, "containers", "id") and not broken(lighterd, "images", "name")
    lighterd.restart()
    for name, pid in pids.items():
        assert lives.await_task(lighterd, name, "running")["pid"] == pid
    lighterd.ctl("rm", "-f", *pids, "labels", "image", check=True)
    lighterd.ctl("images", "rm", "docker.io/library/bad:1", check=True)


def broken(lighterd: Lighterd, noun: str, key: str) -> dict[str, str]:
    rows = rows_of(lighterd, noun, "ls")
    return {
        row[key]: row["labels"][BROKEN_LABEL]
        for row in rows
        if BROKEN_LABEL in (row["labels"] or {})
    }


def test_f36_a_manager_killed_in_a_repair_has_a_next_that_goes_on(lighterd: Lighterd) -> None:
    image = lighterd.import_busybox()
    blobs = lighterd.root / "content/blobs/sha256"
    damaged = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    rot(damaged)
    lighterd.restart(FAULT="check.content-dropped:abort")
    assert lighterd.ctl("system", "check", "--repair").returncode != 0
    assert lighterd.process is not None
    lighterd.process.wait(20)
    lighterd.start()
    # Whether the file or only its record has gone, the image is made whole by its next import.
    assert lighterd.import_busybox() == image
    assert check(lighterd, "--repair")[0] == 0
    assert check(lighterd)[1]["found"] == 0
    assert lighterd.ctl("run", "--rm", image, "new", "sh", "-c", "exit 4").returncode == 4
