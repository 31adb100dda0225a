"""Namespaces and containers: who exists, who is refused and why, and pages."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.namespaces import NamespaceStore
from lighter.daemon.types import MAX_SPEC_BYTES, Container
from lighter.proto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound


def container(container_id: str, namespace: str = "default", spec: bytes = b"{}") -> Container:
    return Container(
        namespace=namespace,
        id=container_id,
        image="busybox",
        runtime="runc",
        snapshotter="overlayfs",
        snapshot_key=container_id,
        spec=spec,
        labels={"role": "test"},
        options={"auto_remove": True},
        created_at=0,
        updated_at=0,
    )


def test_only_default_exists_at_first(db: Database) -> None:
    assert [namespace.name for namespace in NamespaceStore(db).list()] == ["default"]


def test_namespaces_come_by_use_and_once(db: Database) -> None:
    store = NamespaceStore(db)
    store.ensure("k8s.io")
    first = store.get("k8s.io")
    store.ensure("k8s.io")
    assert store.get("k8s.io") == first
    with pytest.raises(AlreadyExists, match=r"create namespace k8s.io: it already exists"):
        store.create("k8s.io")
    with pytest.raises(InvalidArgument):
        store.ensure("../etc")


def test_namespace_labels_are_merged(db: Database) -> None:
    store = NamespaceStore(db)
    store.create("moby", {"a": "1", "b": "2"})
    store.label("moby", {"a": "", "c": "3"})
    assert store.get("moby").labels == {"b": "2", "c": "3"}
    with pytest.raises(NotFound, match="get namespace gone"):
        store.label("gone", {})


def test_a_namespace_that_holds_something_stays(db: Database) -> None:
    store, containers = NamespaceStore(db), ContainerStore(db)
    containers.create(container("web", "moby"))
    with pytest.raises(FailedPrecondition, match=r"delete namespace moby: .*1 containers"):
        store.delete("moby")
    containers.delete("moby", "web")
    store.delete("moby")
    with pytest.raises(NotFound):
        store.delete("moby")


def test_a_container_comes_back_as_it_went_in(db: Database) -> None:
    store = ContainerStore(db)
    made = store.create(container("web"))
    assert store.get("default", "web") == made
    assert made.created_at == made.updated_at > 0
    with pytest.raises(AlreadyExists, match="create container web: it already exists"):
        store.create(container("web"))
    store.create(container("web", "moby"))


def test_bad_containers_are_refused(db: Database) -> None:
    store = ContainerStore(db)
    with pytest.raises(InvalidArgument):
        store.create(container("a/b"))
    with pytest.raises(InvalidArgument, match="its spec has"):
        store.create(container("big", spec=bytes(MAX_SPEC_BYTES + 1)))


def test_a_missing_container_is_looked_for_elsewhere(db: Database) -> None:
    store = ContainerStore(db)
    store.create(container("web", "moby"))
    with pytest.raises(NotFound, match="there is none in namespace default; namespace moby has"):
        store.get("default", "web")
    with pytest.raises(NotFound, match="delete container gone"):
        store.delete("default", "gone")


def test_pages_have_no_spec_and_meet_without_gap(db: Database) -> None:
    store = ContainerStore(db)
    names = [f"c{number:02}" for number in range(7)]
    for name in reversed(names):
        store.create(container(name, spec=b"x" * 1000))
    seen: list[str] = []
    cursor = ""
    for _ in range(4):
        page, cursor = store.list("default", cursor, 2)
        assert all(entry.spec == b"" for entry in page)
        seen += [entry.id for entry in page]
        if not cursor:
            break
    assert seen == names


def test_a_page_fits_a_message_whatever_labels_say(db: Database) -> None:
    store, names = ContainerStore(db), ["c0", "c1", "c2"]
    large = {f"k{number}": "x" * 4000 for number in range(700)}
    for name in names:
        store.create(replace(container(name), labels=large))
    pages = [store.list("default", cursor) for cursor in ("", *names)]
    assert [([entry.id for entry in page], after) for page, after in pages] == [
        (["c0"], "c0"),
        (["c1"], "c1"),
        (["c2"], ""),
        ([], ""),
    ]


def test_resolve_takes_the_id_or_the_only_beginning_of_a_made_up_one(db: Database) -> None:
    store = ContainerStore(db)
    docker = "c0ffee" + 58 * "0"
    for name in ("ab", "ab0123456789", "abcdef012345", docker, "cab"):
        store.create(container(name))
    assert store.resolve("default", "ab") == "ab"
    assert store.resolve("default", "ab0") == "ab0123456789"
    assert store.resolve("default", "c") == docker
    with pytest.raises(InvalidArgument, match="several begin with it: ab0123456789, abcdef012345"):
        store.resolve("default", "a")
    for missing in ("", "%", "q", "*"):
        with pytest.raises(NotFound):
            store.resolve("default", missing)


@pytest.mark.parametrize(
    "name",
    ["db-prod", "db2", "db" + 9 * "0", "db" + 11 * "0", "DB" + 10 * "0", "db-" + 9 * "0"],
)
def test_a_name_is_not_meant_by_its_beginning(db: Database, name: str) -> None:
    store = ContainerStore(db)
    store.create(container(name))
    for length in range(1, len(name)):
        with pytest.raises(NotFound):
            store.resolve("default", name[:length])
    assert store.resolve("default", name) == name


def test_update_changes_what_is_given(db: Database) -> None:
    store = ContainerStore(db)
    made = store.create(container("web"))
    new = store.update("default", "web", spec=b"{1}", labels={"role": "", "x": "y"})
    assert store.get("default", "web") == new
    assert (new.spec, new.labels, new.options) == (b"{1}", {"x": "y"}, made.options)
    assert new.updated_at > made.updated_at


def test_every_insert_names_its_columns() -> None:
    """Else the release before could not write to a table that the next one gives a column."""
    folder = Path(__file__).parents[3] / "daemon"
    inserts = [
        (str(file.relative_to(folder)), found[0])
        for file in folder.rglob("*.py")
        for found in re.finditer(r"INSERT[A-Z ]* INTO \w+(.)", file.read_text())
    ]
    assert len(inserts) > 10
    assert not [insert for insert in inserts if not insert[1].endswith("(")]
