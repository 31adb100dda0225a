"""Which words a container runs: the image's entrypoint and command, and the caller's."""

from collections.abc import Sequence

from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument


def args_from(
    image: ImageConfig,
    args: Sequence[str] = (),
    entrypoint: Sequence[str] | None = None,
    *,
    keep_entrypoint: bool = False,
) -> tuple[str, ...]:
    """Return the process's argument vector.

    As `ctr run`: words given by the caller replace entrypoint and command together, and without
    any the image's own are used. With `keep_entrypoint`, as `docker run`, they replace the command
    alone. An `entrypoint` given by the caller takes the place of the image's, and the image's
    command is dropped, as Docker's --entrypoint does.

    Raises InvalidArgument when nothing is left to run, or a word holds a NUL byte.
    """
    if entrypoint is not None:
        words = (*entrypoint, *args)
    elif args:
        words = (*image.entrypoint, *args) if keep_entrypoint else tuple(args)
    else:
        words = (*image.entrypoint, *image.cmd)
    if not words or not words[0]:
        raise InvalidArgument("choose command: none was given, and the image has none")
    if any("\0" in word for word in words):
        raise InvalidArgument("choose command: a word holds a NUL byte")
    return words
