"""`--userns=auto`: ids that no other container has, free again when it is gone."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.containers.idpool import IdPool
from lighter.daemon.containers.levels import Levels
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.oci.selinux import SELinux
from lighter.daemon.types import Container
from lighter.proto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from tests.harness import Lighterd

CONFIG = 'version = 3\n[plugins."io.lighter.v1".userns]\nids = "300000:196608"\n'


def _ids(lighterd: Lighterd, name: str) -> Any:
    with lighterd.client() as client:
        return client.call("containers", "get", id=name)["container"]["options"]["userns"]


def test_containers_get_ids_of_their_own_and_give_them_back(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd(config=CONFIG).start()
    os.chmod(lighterd.base, 0o711)
    image = lighterd.import_busybox()

    def run(name: str) -> int:
        words = ("run", "-d", "--userns", "auto", "--name", name, image, "sleep", "600")
        return lighterd.ctl(*words).returncode

    with ThreadPoolExecutor(3) as pool:  # at once: none is recorded yet when the others ask
        assert list(pool.map(run, ("a", "b", "c"))) == [0, 0, 0]
    given = sorted(_ids(lighterd, name)["uid"] for name in ("a", "b", "c"))
    assert given == [300000, 365536, 431072]
    seen = lighterd.ctl("exec", "a", "cat", "/proc/self/uid_map", check=True).stdout.split()
    assert list(map(int, seen)) == [0, _ids(lighterd, "a")["uid"], 65536]
    full = lighterd.ctl("run", "-d", "--userns=auto", image, "d", "true")
    assert full.returncode == 125 and b"no 65536 user ids are free" in full.stderr
    lighterd.restart()
    freed = _ids(lighterd, "b")["uid"]
    lighterd.ctl("rm", "-f", "b", check=True)
    small = ("--userns", "auto:size=40000")
    lighterd.ctl("run", "-d", *small, image, "d", "sleep", "600", check=True)
    assert _ids(lighterd, "d") == {"uid": freed, "gid": freed, "size": 40000}
    refused = lighterd.ctl("run", "--userns", "auto", "--uidmap", "0:1:1", image, "e", "true")
    assert refused.returncode == 2 and b"--uidmap" in refused.stderr


def test_ids_come_from_the_files_of_subordinate_ones(tmp_path: Path) -> None:
    uids, gids = tmp_path / "subuid", tmp_path / "subgid"
    db = Database(str(tmp_path / "db"))
    pool = IdPool(ContainerStore(db), "", (str(uids), str(gids)))
    try:
        uids.write_text("root:1:5\ncontainers:900:10\ncontainers:x:9\ncontainers:100:20\n")
        with pytest.raises(FailedPrecondition, match="no ids are set aside"):
            pool.claim(10).__enter__()
        gids.write_text("containers:7000:15\n")
        with pool.claim(15) as (maps, noted):
            assert noted == {"userns": {"uid": 100, "gid": 7000, "size": 15}}
            assert maps.root == (100, 7000)
            with pytest.raises(ResourceExhausted, match="group"):
                pool.claim(1).__enter__()
        with pool.claim(15):
            pass  # it was given back
    finally:
        db.close()


def test_ids_of_a_record_are_kept_while_another_is_written(tmp_path: Path) -> None:
    """A container that is restored has those of the one that it was made of, if they are free."""
    db = Database(str(tmp_path / "db"))
    pool = IdPool(ContainerStore(db), "1000:100")
    ids = {"uid": 1020, "gid": 1020, "size": 10}
    try:
        with pool.keep(ids):
            with pytest.raises(FailedPrecondition, match="user ids 1020 and up"):
                pool.keep(ids).__enter__()
            with pool.claim(20) as (maps, _noted):
                assert maps.root == (1000, 1000)
            with pool.claim(30) as (maps, _noted):
                assert maps.root == (1030, 1030)
        with pool.keep(ids):
            pass  # they were given back
        for wrong in ({}, "", {"uid": "1", "gid": 1, "size": 1}, {"uid": 1, "gid": 1, "size": -1}):
            with pytest.raises(InvalidArgument):
                pool.keep(wrong).__enter__()
    finally:
        db.close()


def test_what_a_damaged_record_may_have_is_given_to_nobody(tmp_path: Path) -> None:
    """Its container may run. The specification says what its options cannot any more."""
    db = Database(str(tmp_path / "db"))
    store = ContainerStore(db)
    maps = [{"containerID": 0, "hostID": 1000, "size": 20}]
    spec = {
        "linux": {"uidMappings": maps, "gidMappings": maps},
        "process": {"selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"},
    }
    named = Container("n", "c", "", "", "", "", json.dumps(spec).encode(), {}, {}, 0, 0)
    try:
        NamespaceStore(db).ensure("n")
        store.create(named)
        for damaged in ("{", "[]"):
            with db.fast_transaction() as tx:
                tx.execute("UPDATE containers SET options = ?", (damaged,))
            with IdPool(store, "1000:100").claim(20) as (found, _noted):
                assert found.root == (1020, 1020)
            assert Levels(store, SELinux(False))._taken() == {"s0:c1,c2"}
    finally:
        db.close()
