"""Entrypoint, command and the caller's words."""

import pytest

from lighter.daemon.oci.args import args_from
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument

IMAGE = ImageConfig(entrypoint=("entry", "-e"), cmd=("cmd",))


@pytest.mark.parametrize(
    ("args", "entrypoint", "expected"),
    [
        ((), None, ("entry", "-e", "cmd")),
        (("sh", "-c"), None, ("sh", "-c")),
        (("a",), ("mine",), ("mine", "a")),
        ((), ("mine",), ("mine",)),
        (("a",), IMAGE.entrypoint, ("entry", "-e", "a")),
        (("a",), (), ("a",)),
    ],
)
def test_args_from(
    args: tuple[str, ...], entrypoint: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    assert args_from(IMAGE, args, entrypoint) == expected


@pytest.mark.parametrize(
    ("args", "entrypoint", "expected"),
    [
        ((), None, ("entry", "-e", "cmd")),
        (("a",), None, ("entry", "-e", "a")),
        (("a",), ("mine",), ("mine", "a")),
        (("a",), (), ("a",)),
    ],
)
def test_args_for_the_images_entrypoint(
    args: tuple[str, ...], entrypoint: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    assert args_from(IMAGE, args, entrypoint, keep_entrypoint=True) == expected


@pytest.mark.parametrize(
    ("image", "args"), [(ImageConfig(), ()), (ImageConfig(), ("",)), (IMAGE, ("a\0b",))]
)
def test_refused(image: ImageConfig, args: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        args_from(image, args)
