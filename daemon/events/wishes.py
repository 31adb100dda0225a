"""Which events a subscriber wants: docker's words (KEY=VALUE), or containerd's expressions.

    container=web          of this container (or one whose id begins so)
    event=exit             the last word of its topic
    type=container         what it is about: container, task, image, namespace, snapshot, content
    image=docker.io/…      of this image, or of a container that is created of it
    topic=/tasks/exit      the topic, or one below it
    namespace=default

Values of one key are alternatives, keys add up, as docker has it. An expression has the fields
namespace, topic and event.<field of the body>, as containerd's; any of several is enough.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lighter.daemon.events.log import Event
from lighter.daemon.filters import MAX_FILTERS, any_of
from lighter.proto.errors import InvalidArgument

Wish = Callable[[Event], bool]

# The first word of a topic for each type.
_TYPES = {
    "container": ("containers",),
    "task": ("tasks",),
    "image": ("images",),
    "namespace": ("namespaces",),
    "snapshot": ("snapshot", "snapshots"),
    "content": ("content",),
}


def wishes(words: Sequence[str], expressions: Sequence[str]) -> Wish:
    """One wish for everything that a client has asked for: any word of each key, and any
    expression. Raises InvalidArgument.
    """
    if len(words) > MAX_FILTERS:
        raise InvalidArgument(f"filter events: {len(words)} are given, {MAX_FILTERS} are allowed")
    by_key: dict[str, list[Wish]] = {}
    for word in words:
        key, sign, value = word.partition("=")
        make = _KEYS.get(key)
        if make is None or not sign or not value:
            raise InvalidArgument(
                f"filter events: {word[:80]!r}: expected one of {', '.join(_KEYS)}, = and a value"
            )
        by_key.setdefault(key, []).append(make(value))
    matches = any_of(expressions)
    every = [*by_key.values()]

    def wanted(event: Event) -> bool:
        return all(any(one(event) for one in some) for some in every) and matches(
            partial(_field, event)
        )

    return wanted


def _container(value: str) -> Wish:
    def of_container(event: Event) -> bool:
        body = event.body
        found = body.get("container_id")
        if found is None and event.topic.startswith("/containers/"):
            found = body.get("id")
        return isinstance(found, str) and found.startswith(value)

    return of_container


def _event(value: str) -> Wish:
    return lambda event: event.topic.rpartition("/")[2] == value


def _type(value: str) -> Wish:
    words = _TYPES.get(value)
    if words is None:
        raise InvalidArgument(f"filter events: there is no type {value!r}: {', '.join(_TYPES)}")
    return lambda event: event.topic.lstrip("/").partition("/")[0] in words


def _image(value: str) -> Wish:
    def of_image(event: Event) -> bool:
        of = "name" if event.topic.startswith("/images/") else "image"
        return event.body.get(of) == value

    return of_image


def _topic(value: str) -> Wish:
    return lambda event: event.topic == value or event.topic.startswith(value.rstrip("/") + "/")


def _namespace(value: str) -> Wish:
    return lambda event: event.namespace == value


_KEYS: Mapping[str, Callable[[str], Wish]] = {
    "container": _container,
    "event": _event,
    "type": _type,
    "image": _image,
    "topic": _topic,
    "namespace": _namespace,
}


def _field(event: Event, path: tuple[str, ...]) -> str | None:
    """What an expression asks of an event."""
    match path:
        case ("namespace",):
            return event.namespace
        case ("topic",):
            return event.topic
        case ("event", *rest) if rest:
            return _text(event.body, rest)
        case _:
            return None


def _text(body: Any, path: Sequence[str]) -> str | None:
    for position, name in enumerate(path):
        if not isinstance(body, Mapping):
            return None
        whole = ".".join(path[position:])  # a label's name may have dots
        if whole in body:
            return _plain(body[whole])
        body = body.get(name)
    return _plain(body)


def _plain(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else None
