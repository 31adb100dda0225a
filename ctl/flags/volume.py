"""Docker's -v: directories of the host and volumes in the container."""

from __future__ import annotations

from lighter.ctl import grammar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_ACCESS = ("ro", "rw", "rro")
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_BINDING = ("bind", "rbind")
_FLAGS = ("noexec", "exec", "nosuid", "suid", "nodev", "dev")
_COPYING = ("nocopy", "copy")
_RELABEL = ("z", "Z")
_OF_MACS = ("consistent", "cached", "delegated")  # docker takes and ignores them on Linux

OPTIONS = (
    grammar.option(
        "--volume",
        "-v",
        "volumes",
        multiple=True,
        metavar="[SOURCE:]PATH[:OPTIONS]",
        help="SOURCE: a directory of the host, or a volume's name; none: a volume of its own.",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {"volumes": [volume(text) for text in flags["volumes"]]}


def volume(text: str) -> dict[str, Any]:
    """One -v as {type, source, destination, options}. Raises grammar.UsageError.

    As docker does it, a directory that is missing on the host is made, by the caller.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise grammar.UsageError(f"--volume {text!r}: expected [SOURCE:]PATH[:OPTIONS]")
    source, destination = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    if not destination.startswith("/"):
        raise grammar.UsageError(f"--volume {text!r}: {destination!r} is no absolute path")
    is_path = source.startswith(("/", "."))
    options = _options(text, parts[2] if len(parts) > 2 else "", is_path=is_path)
    if is_path:
        import os  # which short commands do without

        source = os.path.abspath(source)
        if not os.path.lexists(source):
            try:
                os.makedirs(source)
            except OSError as err:
                raise grammar.UsageError(
                    f"--volume {text!r}: make {source}: {err.strerror}"
                ) from err
        if not {"bind", "rbind"} & set(options):
            options.insert(0, "rbind")
    if not set(options).intersection(_PROPAGATION):
        options.append("rprivate")  # docker's default; else it is what the root has
    kind = "bind" if is_path else "volume"
    return {"type": kind, "source": source, "destination": destination, "options": options}


def _options(text: str, words: str, *, is_path: bool) -> list[str]:
    options: list[str] = []
    for word in filter(None, words.split(",")):
        if word in _OF_MACS or word == "copy":
            continue
        if word not in (*_ACCESS, *_PROPAGATION, *_BINDING, *_FLAGS, *_COPYING, *_RELABEL):
            raise grammar.UsageError(f"--volume {text!r}: option {word!r} is not known here")
        if word == "nocopy" and is_path:
            raise grammar.UsageError(f"--volume {text!r}: nocopy is for volumes")
        options.append(word)
    for group in (_ACCESS, _PROPAGATION, _BINDING, _RELABEL):
        if len(set(options).intersection(group)) > 1:
            raise grammar.UsageError(
                f"--volume {text!r}: {' and '.join(options)} exclude each other"
            )
    return options
