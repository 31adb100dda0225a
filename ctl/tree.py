"""An image as a tree of what it consists of, as `ctr images inspect` draws it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lighter.ctl.output import size_text


def tree_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The lines of an answer of images.tree, with the JSON of documents where it has them."""
    yield answer["name"]
    yield from _lines(answer["target"], "", True)


def _lines(node: Mapping[str, Any], indent: str, is_last: bool) -> Iterator[str]:
    children = node["children"]
    here = "" if node["present"] else ", missing"
    platform = f", {node['platform']}" if node["platform"] else ""
    yield (
        f"{indent}{'└──' if is_last else '├──'} {node['media_type']} @{node['digest']}"
        f" ({size_text(node['size_bytes'])}{platform}{here})"
    )
    below = indent + ("    " if is_last else "│   ")
    if node["content"] is not None:
        bar = "│ " if children else "  "
        for line in json.dumps(node["content"], indent=2, ensure_ascii=False).splitlines():
            yield f"{below}{bar}{line}"
    for number, child in enumerate(children, 1):
        yield from _lines(child, below, number == len(children))
