"""Words of a definition and the networks that they stand for now."""

import pytest

from lighter.daemon.network.live import _Known
from lighter.daemon.network.request import NetworkRequest


@pytest.mark.parametrize(
    ("names", "networks", "cni", "left", "rest", "cni_after"),
    [
        (("mynet",), ("default",), False, "mynet", (), False),
        (("mynet", "b"), ("b",), True, "mynet", ("b",), False),
        (("mynet", "b"), ("b",), True, "b", (), True),
        # The file of a network that was called so is gone, and another stands first now.
        (("mynet",), ("default",), False, "default", (), False),
    ],
)
def test_a_network_that_is_left_goes_by_whatever_word(
    names: tuple[str, ...],
    networks: tuple[str, ...],
    cni: bool,
    left: str,
    rest: tuple[str, ...],
    cni_after: bool,
) -> None:
    request = NetworkRequest(networks=networks, cni=cni)
    changed = _Known(names).without(request, left)
    assert (changed.networks, changed.cni) == (rest, cni_after)
