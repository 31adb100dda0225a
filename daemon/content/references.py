"""Who needs whom: the graph that a collection walks, within one namespace.

Nodes are content, snapshots, images, containers, leases and work; an edge says what one keeps.
Images lead to their target, containers to their snapshot, snapshots to their parent, leases and
work to what they name. Labels of content, snapshots, images and containers add edges, containerd's
(docs/garbage-collection.md there):

    containerd.io/gc.ref.content[.x|/x] = digest          keeps content
    containerd.io/gc.ref.snapshot.<snapshotter>[/x] = key keeps a snapshot
    containerd.io/gc.ref.image[.x|/x] = name              keeps an image
    containerd.io/gc.bref.{content,image,container}[.x|/x], gc.bref.snapshot.<snapshotter>[/x]
                                                          the named object keeps this one
    containerd.io/gc.root                                 this one is a root
    containerd.io/gc.expire = RFC 3339                    an image or lease ends then; content and
                                                          snapshots are roots until then
    containerd.io/gc.flat                                 a lease keeps what it names, and of a
                                                          snapshot the parents, but follows no label

Unlike containerd, active snapshots and views are roots: a client that prepared one and crashed
removes it by name, and no collection pulls a root file system away from under somebody. What a
client unpacks a layer to under a lease is nobody's, and goes with the lease.
"""

import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from lighter.daemon.metadata.columns import texts
from lighter.daemon.metadata.texts import Unreadable
from lighter.daemon.snapshots.types import COMMITTED, UNDER_LEASE_LABEL
from lighter.proto.names import BROKEN_LABEL

ROOT_LABEL = "containerd.io/gc.root"
EXPIRE_LABEL = "containerd.io/gc.expire"
FLAT_LABEL = "containerd.io/gc.flat"
REF_LABEL = "containerd.io/gc.ref."
BACK_REF_LABEL = "containerd.io/gc.bref."
CONTENT_LABEL = REF_LABEL + "content"
SNAPSHOT_LABEL = REF_LABEL + "snapshot."

_ANY = "containerd.io/gc."

CONTENT = "content"
SNAPSHOT = "snapshot"
IMAGE = "image"
CONTAINER = "container"
LEASE = "lease"
WORK = "work"


class Node(NamedTuple):
    """`name` of a snapshot is "<snapshotter>/<key>". A flat node follows no labels."""

    kind: str
    name: str
    flat: bool = False


class Step(NamedTuple):
    """One link of a chain: a node, and how the one before keeps it (a root: why it is one)."""

    node: Node
    how: str


def snapshot(snapshotter: str, key: str, *, flat: bool = False) -> Node:
    return Node(SNAPSHOT, f"{snapshotter}/{key}", flat)


class References:
    """The graph. Adding is for `load`; a node that is named and does not exist is a dead end."""

    def __init__(self) -> None:
        self.roots: dict[Node, str] = {}
        self.unreadable: list[Node] = []  # what they need is not known
        self.unnamed: list[str] = []  # what somebody needs, or has, by a name that cannot be read
        self._edges: dict[Node, list[Step]] = {}

    def root(self, node: Node, why: str) -> None:
        self.roots.setdefault(node, why)

    def edge(self, source: Node, target: Node, how: str) -> None:
        self._edges.setdefault(source, []).append(Step(target, how))

    def named(self, *names: str) -> None:
        """Take note of names that cannot be read."""
        self.unnamed += [name for name in names if type(name) is Unreadable]

    def labelled(self, node: Node, text: str, now_ns: int, *, may_be_root: bool) -> None:
        """Take in an object's labels, a JSON text."""
        if text == "{}":
            return
        labels = texts(text)
        if labels is None:
            self.root(node, "its labels cannot be read")
            self.unreadable.append(node)
            return
        for label, value in labels.items():
            if target := named_by(label, value, REF_LABEL):
                self.edge(node, target, label)
            elif source := named_by(label, value, BACK_REF_LABEL):
                self.edge(source, node, label)
            elif may_be_root and label.startswith(ROOT_LABEL):
                self.root(node, label)
            elif may_be_root and label == EXPIRE_LABEL and not is_over(value, now_ns):
                self.root(node, f"{label}={value}")

    def leads_to(self, node: Node) -> Iterator[Step]:
        """What a node keeps, itself."""
        if not node.flat:
            yield from self._edges.get(node, ())
        elif node.kind == SNAPSHOT:
            for target, how in self._edges.get(node._replace(flat=False), ()):
                if how == "parent":
                    yield Step(target._replace(flat=True), how)
        elif node.kind == IMAGE:
            for target, how in self._edges.get(node._replace(flat=False), ()):
                if how == "target":
                    yield Step(target._replace(flat=True), how)

    def reachable(self, roots: Iterable[Node] | None = None) -> set[tuple[str, str]]:
        """(kind, name) of all that the roots keep, themselves too; of all roots, or of these."""
        found = set(self.roots if roots is None else roots)
        waiting = list(found)
        while waiting:
            for target, _ in self.leads_to(waiting.pop()):
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        return {(node.kind, node.name) for node in found}

    def chains(self, kind: str, name: str, limit: int) -> list[tuple[Step, ...]]:
        """What keeps an object: the shortest chain from each root that does, at most `limit`."""
        found = []
        for root, why in self.roots.items():
            if chain := self._chain(Step(root, why), kind, name):
                found.append(chain)
                if len(found) == limit:
                    break
        return found

    def _chain(self, root: Step, kind: str, name: str) -> tuple[Step, ...]:
        came: dict[Node, tuple[Step, Node | None]] = {root.node: (root, None)}
        waiting = deque([root.node])
        while waiting:
            node = waiting.popleft()
            if (node.kind, node.name) == (kind, name):
                chain = []
                at: Node | None = node
                while at is not None:
                    step, at = came[at]
                    chain.append(step)
                return tuple(reversed(chain))
            for step in self.leads_to(node):
                if step.node not in came:
                    came[step.node] = (step, node)
                    waiting.append(step.node)
        return ()


def named_by(label: str, value: str, prefix: str) -> Node | None:
    """The node that a reference label names; None for a label that is none."""
    if not label.startswith(prefix):
        return None
    rest = label[len(prefix) :]
    if rest.startswith("snapshot."):
        snapshotter = rest.removeprefix("snapshot.").partition("/")[0]
        return snapshot(snapshotter, value) if snapshotter else None
    kinds = (CONTENT, IMAGE) if prefix == REF_LABEL else (CONTENT, IMAGE, CONTAINER)
    for kind in kinds:
        if rest == kind or rest.startswith((f"{kind}.", f"{kind}/")):
            return Node(kind, value)
    return None


def lets_go(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether an object of the labels `before` may keep, or be kept by, less with those `after`."""
    return any(
        (label.startswith(_ANY) or label == BROKEN_LABEL) and after.get(label) != value
        for label, value in before.items()
    )


def is_over(value: str, now_ns: int) -> bool:
    """Whether the time of a `gc.expire` has come. What is no time never comes, as in containerd."""
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e9 <= now_ns
    except (ValueError, OverflowError):
        return False


# Namespaces that there are none of: what is noted below one may belong to any.
_ASTRAY = (
    "SELECT namespace FROM images UNION SELECT namespace FROM content"
    " UNION SELECT namespace FROM snapshots UNION SELECT namespace FROM containers"
    " UNION SELECT namespace FROM leases EXCEPT SELECT name FROM namespaces"
)


def load(
    tx: sqlite3.Connection, namespace: str, now_ns: int, work: Mapping[Node, str]
) -> References:
    """The graph of one namespace, from its rows. `work`: what this process needs, and for what."""
    graph = References()
    for node, what in work.items():
        of = Node(WORK, what)
        graph.root(of, "it is under way")
        graph.edge(of, node, "needs")
    graph.unnamed += [f"namespace {row['namespace']}" for row in tx.execute(_ASTRAY)]
    _load_images(tx, namespace, now_ns, graph)
    for row in tx.execute("SELECT digest, labels FROM content WHERE namespace = ?", (namespace,)):
        node = Node(CONTENT, row["digest"])
        graph.named(row["digest"])
        graph.labelled(node, row["labels"], now_ns, may_be_root=True)
    _load_snapshots(tx, namespace, now_ns, graph)
    for row in tx.execute(
        "SELECT id, snapshotter, snapshot_key, labels FROM containers WHERE namespace = ?",
        (namespace,),
    ):
        node = Node(CONTAINER, row["id"])
        graph.named(row["snapshotter"], row["snapshot_key"])
        graph.root(node, "it is a container")
        graph.edge(node, snapshot(row["snapshotter"], row["snapshot_key"]), "snapshot")
        graph.labelled(node, row["labels"], now_ns, may_be_root=False)
    _load_leases(tx, namespace, now_ns, graph)
    return graph


def _load_images(tx: sqlite3.Connection, namespace: str, now_ns: int, graph: References) -> None:
    for row in tx.execute(
        "SELECT name, digest, labels FROM images WHERE namespace = ?", (namespace,)
    ):
        node = Node(IMAGE, row["name"])
        graph.named(row["digest"])
        if not image_is_over(row["labels"], now_ns):
            graph.root(node, "it is an image")
        graph.edge(node, Node(CONTENT, row["digest"]), "target")
        graph.labelled(node, row["labels"], now_ns, may_be_root=False)


def image_is_over(labels: str, now_ns: int) -> bool:
    """Whether an image's own labels, a JSON text, say that it may go."""
    if EXPIRE_LABEL not in str(labels):
        return False
    value = (texts(labels) or {}).get(EXPIRE_LABEL)
    return value is not None and is_over(value, now_ns)


def _load_snapshots(tx: sqlite3.Connection, namespace: str, now_ns: int, graph: References) -> None:
    rows = tx.execute(
        "SELECT number, parent, kind, labels, snapshotter, key FROM snapshots WHERE namespace = ?",
        (namespace,),
    ).fetchall()
    nodes = {row["number"]: snapshot(row["snapshotter"], row["key"]) for row in rows}
    for row in rows:
        node = nodes[row["number"]]
        graph.named(row["snapshotter"], row["key"], row["kind"])
        if row["parent"] is not None and row["parent"] not in nodes:
            graph.unnamed.append(f"the parent of {row['key']}")
        elif row["parent"] is not None:
            graph.edge(node, nodes[row["parent"]], "parent")
        if row["kind"] != COMMITTED and not is_under_lease(row["labels"]):
            graph.root(node, f"it is {'a view' if row['kind'] == 'view' else 'active'}")
        graph.labelled(node, row["labels"], now_ns, may_be_root=True)


def is_under_lease(labels: str) -> bool:
    """Whether an active snapshot, by its labels (a JSON text), is none of the roots."""
    return UNDER_LEASE_LABEL in str(labels) and UNDER_LEASE_LABEL in (texts(labels) or {})


def _load_leases(tx: sqlite3.Connection, namespace: str, now_ns: int, graph: References) -> None:
    flat = {}
    for row in tx.execute(
        "SELECT id, labels FROM leases WHERE namespace = ?"
        " AND (expires_at IS NULL OR expires_at > ?)",
        (namespace, now_ns),
    ):
        labels = row["labels"]
        graph.named(row["id"])
        flat[row["id"]] = FLAT_LABEL in str(labels) and FLAT_LABEL in (texts(labels) or {})
        graph.root(Node(LEASE, row["id"]), "it is a lease")
    for row in tx.execute(
        "SELECT lease, type, resource FROM lease_resources WHERE namespace = ?", (namespace,)
    ):
        graph.named(row["lease"], row["type"], row["resource"])
        if row["lease"] in flat and (node := leased(row["type"], row["resource"])):
            node = node._replace(flat=flat[row["lease"]])
            graph.edge(Node(LEASE, row["lease"]), node, "holds")


def leased(type_: str, resource: str) -> Node | None:
    """The node of a lease's resource; None for an ingest, which is no part of the graph."""
    if type_ == "content":
        return Node(CONTENT, resource)
    if type_ == "images":
        return Node(IMAGE, resource)
    if type_.startswith("snapshots/"):
        return snapshot(type_.removeprefix("snapshots/"), resource)
    return None
