"""Lists that come in pages, put together."""

from typing import Any

from lighter.ctl.cli import Session
from lighter.proto.daemon_api import PAGE_ROWS


def pages(session: Session, method: str, key: str, **fields: object) -> list[dict[str, Any]]:
    """All rows of a list whose replies carry `key` and `next`; `fields` go with each request."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = session.call(method, cursor=cursor, limit=PAGE_ROWS, **fields)
        rows += page[key]
        cursor = page["next"] or None
    return rows
