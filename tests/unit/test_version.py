"""What pyproject.toml says of the package: one version, and all of its folders."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lighter.proto.version import VERSION

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("ctl", "daemon", "proto", "shim")


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_programs_say_the_packages_version(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == VERSION


def test_every_folder_is_installed(project: dict[str, Any]) -> None:
    """A checkout that is linked would not miss one."""
    found = {
        "lighter." + ".".join(path.parent.relative_to(REPOSITORY).parts)
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found
