"""Rules for the names that people and clients choose: ids, namespaces, labels.

The alphabet and the length are containerd's (identifiers of at most 76 characters, a label of at
most 4096 bytes, key and value together), so that what its clients send is accepted or refused
alike. A name that passes here is safe as one path component.
"""

from lighter.proto.errors import InvalidArgument

MAX_NAME = 76
MAX_LABEL_BYTES = 4096
# Of an object whose record is damaged; its value names what of it could not be read.
BROKEN_LABEL = "io.lighter/broken"

# Not by `re`, which takes longer to load than all else of a short command.
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_LATER = _FIRST.union("._-")


def check_name(name: object, what: str) -> str:
    """Return `name` when it is a valid id of a `what` ("container", "namespace", "exec", …).

    Raises InvalidArgument with the rule that was broken.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"check {what} id: expected text, got {type(name).__name__}")
    if not name:
        raise InvalidArgument(f"check {what} id: it is empty")
    if len(name) > MAX_NAME:
        raise InvalidArgument(
            f"check {what} id {name[:20]!r}…: {len(name)} characters, at most {MAX_NAME} fit"
        )
    if name[0] not in _FIRST or not _LATER.issuperset(name):
        raise InvalidArgument(
            f"check {what} id {name!r}: only letters, digits, '.', '_' and '-' are allowed, "
            "and it starts with a letter or digit"
        )
    return name


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Return `labels` when each key and value together fit; raises InvalidArgument."""
    for key, value in labels.items():
        if not key:
            raise InvalidArgument("check label: the key is empty")
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL_BYTES:
            raise InvalidArgument(
                f"check label {key[:64]!r}: key and value have {size} bytes, "
                f"at most {MAX_LABEL_BYTES} are allowed"
            )
    return labels
