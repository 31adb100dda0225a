"""What the modules of handlers share: a service's methods by name, the namespace of a call."""

from typing import Any

from lighter.daemon.rpc.server import Call, Method
from lighter.proto.names import check_name


def methods(service: str, **methods: Any) -> dict[str, Method]:
    """Unary methods by their names within a service."""
    return {f"{service}.{name}": Method(unary=method) for name, method in methods.items()}


def namespace_of(call: Call) -> str:
    """Raises InvalidArgument."""
    return check_name(call.namespace, "namespace")
