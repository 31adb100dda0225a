"""Docker's -v into the mount that it means."""

from pathlib import Path

import pytest

from lighter.ctl.flags.volume import volume
from lighter.ctl.grammar import UsageError


def test_what_a_source_is_says_its_first_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert volume("/d") == {
        "type": "volume",
        "source": "",
        "destination": "/d",
        "options": ["rprivate"],
    }
    named = volume("data:/d:ro,nocopy,z,cached")
    assert (named["type"], named["source"]) == ("volume", "data")
    assert named["options"] == ["ro", "nocopy", "z", "rprivate"]
    bound = volume("./new/deep:/d:rslave")
    assert (bound["type"], bound["source"]) == ("bind", f"{tmp_path}/new/deep")
    assert bound["options"] == ["rbind", "rslave"]
    assert (tmp_path / "new/deep").is_dir(), "docker makes a directory that is missing"
    (tmp_path / "file").touch()
    assert volume(f"{tmp_path}/file:/d")["source"] == f"{tmp_path}/file"


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "a:", ":/d", "a:b", "relative", "a:/b:ro:rw", "data:/d:colour"),
        *("/a:/d:nocopy", "a:/d:ro,rw", "a:/d:shared,rslave"),
    ],
)
def test_a_wrong_volume_is_wrong_usage(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        volume(text)
