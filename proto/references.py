"""The registry in an image's name: ctl looks for its credential, the manager asks it."""

DEFAULT_REGISTRY = "docker.io"


def split_registry(name: str) -> tuple[str, str]:
    """(registry, path) of a name as a user types it, without `@digest`.

    What stands before the first slash is a registry if it could not be a Docker Hub user.
    """
    first, slash, path = name.partition("/")
    is_registry = slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    registry, path = (first, path) if is_registry else (DEFAULT_REGISTRY, name)
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return registry, path
