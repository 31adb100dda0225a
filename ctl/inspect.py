"""`ctl inspect`: all that is known about a container, an image, a volume or a network.

A template sees what the JSON shows, and beside it docker's names for the same.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session
from lighter.ctl.dockernames import as_docker
from lighter.ctl.output import plain, print_json
from lighter.ctl.resolve import resolved, work_through
from lighter.proto.errors import InvalidArgument, LighterError, NotFound


@grammar.command("inspect")
@grammar.option(
    "--type",
    "kind",
    type=grammar.Choice(("container", "image", "volume", "network")),
    help="What it is.  [default: the first of these that there is]",
)
@grammar.option(
    "--format",
    "-f",
    "template",
    metavar="json|TEMPLATE",
    help="Or a Go template: '{{.State.Pid}}'.",
)
@grammar.argument("refs", nargs=-1, required=True, metavar="NAME...")
def inspect(session: Session, refs: tuple[str, ...], kind: str | None, template: str | None) -> int:
    """Print all that is known about containers, images, volumes or networks, as JSON.

    What is not there is told, and does not keep the others.

    \b
      ctl inspect web
      ctl inspect -f '{{.State.Status}} {{range .Mounts}}{{.Source}} {{end}}' web
      ctl inspect --type image -f '{{json .Config.Env}}' nginx:alpine
    """
    shape = None
    if template and template not in ("json", "table"):
        from lighter.ctl.gotemplate import GoTemplate

        shape = GoTemplate(template)

    def show(ref: str) -> None:
        found, as_docker = _found(session, ref, kind)
        if shape is None:
            print_json(found)
        else:
            shown = plain(found)
            print(shape.render({**shown, **plain(as_docker(shown))}))

    return work_through(session, refs, show, shown=False)


Look = tuple[dict[str, Any], Callable[[Mapping[str, Any]], dict[str, Any]]]


def _found(session: Session, ref: str, kind: str | None) -> Look:
    """The object, and how to say it in docker's names. Raises NotFound."""
    if kind:
        return _LOOKS[kind](session, ref)
    first: LighterError | None = None
    for look in _LOOKS.values():
        try:
            return look(session, ref)
        except (NotFound, InvalidArgument) as error:  # a name may be none of a container
            first = first or error
    assert first is not None
    raise first


def _container(session: Session, ref: str) -> Look:
    return resolved(session, ref, lambda id_: _everything(session, id_)), as_docker


def _everything(session: Session, container_id: str) -> dict[str, Any]:
    container = session.call("containers.get", id=container_id)["container"]
    try:
        task = session.call("tasks.get", id=container_id)["task"]
    except NotFound:
        task = None
    return {**container, "spec": json.loads(container["spec"]), "task": task}


def _image(session: Session, ref: str) -> Look:
    found: dict[str, Any] = session.call("images.get", name=ref)
    return found, image_as_docker


def image_as_docker(shown: Mapping[str, Any]) -> dict[str, Any]:
    image, config = shown["image"], shown["config"]
    return {
        "Id": (shown["manifest"].get("config") or {}).get("digest", ""),
        "RepoTags": [image["name"]],
        "Created": config.get("created", ""),
        "Author": config.get("author", ""),
        "Architecture": config.get("architecture", ""),
        "Os": config.get("os", ""),
        "Config": config.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": (config.get("rootfs") or {}).get("diff_ids") or []},
    }


def _volume(session: Session, ref: str) -> Look:
    from lighter.ctl import volume

    found: dict[str, Any] = session.call("volumes.get", name=ref)["volume"]
    return found, volume.as_docker


def _network(session: Session, ref: str) -> Look:
    found: dict[str, Any] = session.call("networks.get", name=ref)["network"]
    return found, lambda shown: {"Name": shown.get("name", ref)}


_LOOKS = {"container": _container, "image": _image, "volume": _volume, "network": _network}
