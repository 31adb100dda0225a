"""What containerd's filters (filters.py) may ask of a container and of a lease."""

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
            return container.id
        case ("image",):
            return container.image
        case ("runtime", "name"):
            return container.runtime
        case ("labels", *rest) if rest:
            return container.labels.get(label_path(rest))
        case _:
            return None


def _lease_field(lease: Lease, path: tuple[str, ...]) -> str | None:
    match path:
        case ("id",):
            return lease.id
        case ("labels", *rest) if rest:
            return lease.labels.get(label_path(rest))
        case _:
            return None
