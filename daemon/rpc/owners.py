"""Namespaces whose containers another program looks after: what ctl must not do there by accident.

dockerd and kubelet keep books of their own about what they have made here, and know nothing of
what somebody ends or changes behind their backs. Reading, exec and whatever adds something stay
free; who attaches there gets what it reads in time, and holds nothing up. Requests of the native
front end only: through containerd's API these programs act themselves.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from lighter.daemon.foreign import OWNERS
from lighter.daemon.rpc.methods import Call, Method
from lighter.proto.errors import FailedPrecondition

# Methods that end, change or take away what is there.
GUARDED = frozenset(
    {
        *("containers.start", "containers.restart", "containers.update", "containers.rename"),
        *("containers.delete", "containers.forget", "containers.label", "containers.checkpoint"),
        *(
            "tasks.create",
            "tasks.kill",
            "tasks.stop",
            "tasks.pause",
            "tasks.resume",
            "tasks.delete",
        ),
        *("tasks.checkpoint", "networks.connect", "networks.disconnect"),
        *("images.delete", "images.label", "namespaces.delete", "namespaces.label"),
        *("content.delete", "content.label", "content.abort", "content.prune_references"),
        *("leases.delete", "leases.delete_resource"),
        *("snapshots.delete", "snapshots.commit", "snapshots.label"),
    }
)


def guarded(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods, of which those above are refused in such a namespace unless they are forced."""
    return {
        name: _guarded(name, method) if name in GUARDED else method
        for name, method in methods.items()
    }


def is_owned(namespace: str) -> bool:
    """Whether another program looks after its containers."""
    return namespace in OWNERS


def check(name: str, call: Call, body: Mapping[str, Any]) -> None:
    """Raises FailedPrecondition for an act on what is another program's."""
    namespace = body.get("name") if name.startswith("namespaces.") else call.namespace
    owner = OWNERS.get(namespace) if isinstance(namespace, str) else None
    if owner is None or call.forced or body.get("force") is True:
        return
    if name in ("tasks.kill", "tasks.delete") and body.get("exec_id"):
        return  # a process that was added, by whoever asks or by the owner's leave
    if name == "tasks.create" and not body.get("replace"):
        return  # a task of a container that has none
    what = body.get("id") or body.get("name") or body.get("digest") or body.get("key") or "all"
    raise FailedPrecondition(
        f"{name.partition('.')[2]} {what}: namespace {namespace} is {owner}'s, which would not "
        "know of it; ask that, or use --force"
    )


def _guarded(name: str, method: Method) -> Method:
    unary, stream = method.unary, method.stream

    async def answer(call: Call, body: Mapping[str, Any]) -> Any:
        check(name, call, body)
        assert unary is not None
        return await unary(call, body)

    async def items(call: Call, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        check(name, call, body)
        assert stream is not None
        answers = stream(call, body)
        try:
            async for item in answers:
                yield item
        finally:
            await answers.aclose()  # type: ignore[attr-defined]

    return Method(answer if unary else None, items if stream else None)
