"""What containerd's filters (filters.py) may ask of a container and of a lease.

A text that is empty is not there, as in containerd's adaptors; a label may be.
"""

from functools import partial

from lighter.daemon.filters import Look, label_path
from lighter.daemon.leases import Lease
from lighter.daemon.types import Container


def of_container(container: Container) -> Look:
    """id, image, runtime.name and labels, as containerd's adaptContainer."""
    return partial(_container_field, container)


def of_lease(lease: Lease) -> Look:
    """id and labels, as containerd's adaptLease."""
    return partial(_lease_field, lease)


def _container_field(container: Container, path: tuple[str, ...]) -> str | None:
    match path:
        case ("id",):
            return container.id or None
        case ("image",):
            return container.image or None
        case ("runtime", "name"):
            return container.runtime or None
        case ("labels", *rest) if rest:
            return container.labels.get(label_path(rest))
        case _:
            return None


def _lease_field(lease: Lease, path: tuple[str, ...]) -> str | None:
    match path:
        case ("id",):
            return lease.id or None
        case ("labels", *rest) if rest:
            return lease.labels.get(label_path(rest))
        case _:
            return None
