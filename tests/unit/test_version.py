"""One version: what the package is called, and what its programs say."""

import tomllib
from pathlib import Path

from lighter.proto.version import VERSION


def test_the_programs_say_the_packages_version() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
