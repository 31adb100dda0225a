"""A document of TOML as text (toml.io, 1.0.0: String)."""

import json
from collections.abc import Mapping
from typing import Any

import toml  # only where a configuration is written: no manager that serves does


def text_of(document: Mapping[str, Any]) -> str:
    """What `tomllib` reads back to the same."""
    encoder: Any = toml.TomlEncoder()
    # Its own way with texts loses what follows a backslash, and fails for control characters.
    encoder.dump_funcs[str] = _basic_string
    return toml.dumps(document, encoder=encoder)


def _basic_string(text: str) -> str:
    """JSON's escapes are TOML's; DEL, which JSON leaves, has to be escaped in TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
