"""A document of TOML as text (toml.io, 1.0.0)."""

from collections.abc import Mapping
from typing import Any

import tomli_w  # only where a configuration is written: no manager that serves does


def text_of(document: Mapping[str, Any]) -> str:
    """What `tomllib` reads back to the same."""
    return tomli_w.dumps(document)
