"""Every command and flag of ctr 1.6 and 1.7 is in ctl, or stands in docs/flags.md with a reason."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lighter.ctl.cli import ctl as root
from lighter.ctl.grammar import Command, Group
from tests.grpc.newer import CTR

DOCS = Path(__file__).resolve().parents[2] / "docs/flags.md"
HEADING = "## Words of ctr that ctl has not"
PROGRAMS = {"1.6": "ctr", "1.7": str(CTR)}


@dataclass(frozen=True)
class Told:
    """What ctr's help tells of one command; `flags` and `commands` by all their names.

    `valued` has the first names of those flags that want a word behind them.
    """

    path: tuple[str, ...]
    usage: str
    flags: tuple[tuple[str, ...], ...]
    valued: frozenset[str]
    commands: tuple[tuple[str, ...], ...]


def walk(program: str, path: tuple[str, ...] = ()) -> Iterator[Told]:
    """All commands of a ctr, from the outermost on."""
    argv = [program, *path, "--help"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    parts = dict(re.findall(r"^([A-Z ]+):\n(.*?)(?=^[A-Z ]+:\n|\Z)", text, re.M | re.S))
    options = parts.get("OPTIONS", "") + parts.get("GLOBAL OPTIONS", "")
    lines = re.findall(r"^   (--?\S.*?)(?:  |$)", options, re.M)
    flags = [tuple(word.split()[0] for word in line.split(", ")) for line in lines]
    valued = frozenset(line.split()[0] for line in lines if " " in line.partition(", ")[0])
    commands = [
        tuple(names.split(", "))
        for names in re.findall(r"^   +([^\s,]+(?:, [^\s,]+)*)", parts.get("COMMANDS", ""), re.M)
    ]
    flags = [names for names in flags if "--help" not in names]
    commands = [names for names in commands if "help" not in names]
    yield Told(path, parts["USAGE"].strip(), tuple(flags), valued, tuple(commands))
    for names in commands:
        yield from walk(program, (*path, names[0]))


def find(path: tuple[str, ...]) -> Command | None:
    command: Command | None = root
    for word in path:
        command = command.find(word) if isinstance(command, Group) else None
    return command


def lacks(program: str) -> set[str]:
    """The commands, flags and filters that ctl has not, a flag as `command --flag`.

    Of one name, but with a word behind it in one of both alone, a flag is not the same.
    """
    found: set[str] = set()
    for told in walk(program):
        command = find(told.path)
        if command is None:
            continue  # told of by the group that it is in
        where = " ".join(told.path)
        known = {name: one.is_flag for one in command.parameters for name in one.names}
        for names in told.flags:
            alike = known.get(names[0]) is (names[0] not in told.valued)
            if not alike or not known.keys() >= {*names}:
                found.add(f"{where} {names[0]}".strip())
        for names in told.commands:
            if not isinstance(command, Group) or None in map(command.find, names):
                found.add(f"{where} {names[0]}".strip())
        takes = any(one.rest and "FILTER" in str(one.shown) for one in command.parameters)
        if "<filter>" in told.usage and not takes:
            found.add(f"{where} <filter>")
    return found


def documented() -> set[str]:
    """The first column of the table; `command`, then `--flags`, where they share one command."""
    table = DOCS.read_text().partition(HEADING)[2].partition("\n|---")[2]
    words: set[str] = set()
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        said = line.split("|")[1]
        before, colon, after = said.partition(":")
        named = [re.findall(r"`(.*?)`", part) for part in (before, after)]
        words |= {f"{a} {b}" for a in named[0] for b in named[1]} if colon else {*named[0]}
    return words


def covers(word: str, lacking: str) -> bool:
    return lacking == word or (word.startswith("--") and lacking.endswith(f" {word}"))


@pytest.fixture(scope="module")
def lacking() -> dict[str, set[str]]:
    assert CTR.exists(), f"{CTR} is missing: .ci/setup fetches it"
    return {version: lacks(program) for version, program in PROGRAMS.items()}


def test_every_word_of_ctr_is_there_or_has_a_reason(lacking: dict[str, set[str]]) -> None:
    words = documented()
    assert len(words) > 20, "the table is read"
    for version, found in lacking.items():
        told = sorted(one for one in found if not any(covers(word, one) for word in words))
        assert not told, f"of ctr {version}, neither in ctl nor in docs/flags.md"


def test_no_word_stands_there_without_need(lacking: dict[str, set[str]]) -> None:
    found = set.union(*lacking.values())
    idle = sorted(word for word in documented() if not any(covers(word, one) for one in found))
    assert not idle, "in docs/flags.md, but in ctl too, or not in ctr"


def test_the_help_of_ctr_is_read_whole() -> None:
    """That nothing is missed: what both versions are known to have, and how much there is."""
    for program in PROGRAMS.values():
        told = {one.path: one for one in walk(program)}
        assert len(told) > 70
        assert ("--detach", "-d") in told["tasks", "start"].flags
        assert ("delete", "del", "remove", "rm") in told["containers",].commands
        assert "--exec-id" in told["tasks", "exec"].valued
        assert "--detach" not in told["tasks", "start"].valued
        assert sum(len(one.flags) for one in told.values()) > 200
