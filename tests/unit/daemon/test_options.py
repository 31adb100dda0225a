"""lighterd's options: what is read without click is read as click would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighter.daemon.entry import options
from lighter.daemon.entry.clicked import cli
from lighter.daemon.entry.options import LEVELS, Given, Installed, plain

ME = Installed(("spawner",), "cores")


def test_every_option_with_a_value_is_known_as_click_knows_it() -> None:
    """One that is added to click alone would be a mistake without it."""
    of_click = {
        written: {"config_path": "path", "log_level": "level"}.get(str(option.name), option.name)
        for option in cli.params
        if not getattr(option, "is_flag", False)
        for written in option.opts
    }
    assert of_click == options._WRITTEN
    level = next(option for option in cli.params if option.name == "log_level")
    assert tuple(getattr(level.type, "choices", ())) == LEVELS


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ((), Given(ME)),
        (("--root", "r", "--state", "/s"), Given(ME, root="r", state="/s")),
        (("-c", "f", "-l", "debug", "-a", "/a"), Given(ME, path="f", level="debug", address="/a")),
        (("--root", "a", "--root", "b"), Given(ME, root="b")),
        (("--root", ""), Given(ME, root="")),
    ],
)
def test_a_plain_start(words: tuple[str, ...], given: Given) -> None:
    assert plain(words, ME) == given


@pytest.mark.parametrize(
    "words",
    [
        *(("--daemon",), ("--root", "/r", "--daemon"), ("config", "dump"), ("--help",)),
        *(("--root",), ("--root", "--state"), ("--root=/r",), ("-l", "loud"), ("--rot", "/r")),
        *(("--root", "/r", "config"), ("--", "--root"), ("", "")),
    ],
)
def test_all_else_is_for_click(words: tuple[str, ...]) -> None:
    assert plain(words, ME) is None


@pytest.mark.parametrize("name", ["lighterd", "containerd"])
def test_a_shell_that_completes_words_starts_no_manager(tmp_path: Path, name: str) -> None:
    """It runs the program without arguments, which else means to serve."""
    program = tmp_path / name
    program.symlink_to(Path(sys.executable).parent / "lighterd")
    asked = {f"_{name.upper()}_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    asked |= {"COMP_WORDS": f"{name} --sta", "PATH": os.environ["PATH"]}
    done = subprocess.run([program], env=asked, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "plain,--state\n"), done.stderr
