"""These rows need the whole manager: the fixtures, and the census, of the integration tests."""

from tests.integration.conftest import busybox, lighterd, make_lighterd, one_lighterd, owners

__all__ = ["busybox", "lighterd", "make_lighterd", "one_lighterd", "owners"]
