"""Methods about checkpoints: containers to images and back."""

from collections.abc import Mapping
from functools import partial
from signal import SIGKILL
from typing import Any

from lighter.daemon.checkpoints.service import ENDED_S, Checkpoints
from lighter.daemon.restarts.byhand import ByHand
from lighter.daemon.rpc.fields import Fields
from lighter.daemon.rpc.methods import Call, Method, methods, namespace_of

Body = Mapping[str, Any]


def checkpoint_methods(checkpoints: Checkpoints, by_hand: ByHand) -> dict[str, Method]:
    async def checkpoint(call: Call, body: Body) -> Any:
        fields = Fields("containers.checkpoint", body)
        namespace = namespace_of(call)
        end = partial(by_hand.stop, namespace, fields.id(), timeout_s=ENDED_S, signum=SIGKILL)
        image = await checkpoints.write(
            namespace,
            fields.id(),
            fields.needed("name"),
            rw=fields.flag("rw"),
            image=fields.flag("image"),
            task=fields.flag("task"),
            end=end if fields.flag("ends") else None,
        )
        return {"image": image.name, "digest": image.target.digest}

    async def restore(call: Call, body: Body) -> Any:
        fields = Fields("containers.restore", body)
        container = await checkpoints.restore(
            namespace_of(call),
            fields.id(),
            fields.needed("name"),
            rw=fields.flag("rw"),
            live=fields.flag("live"),
            trust=fields.flag("trust"),
        )
        return {"id": container.id}

    return methods("containers", checkpoint=checkpoint, restore=restore)
