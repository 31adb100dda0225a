"""A database in a directory of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lighter.daemon.metadata.db import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(str(tmp_path / "lighter.db"))
    yield database
    database.close()
