"""Names and modules made ahead: which they are, and that there is one of each."""

import subprocess
import sys
from pathlib import Path

MODULE = """
at_import = "only_at_import"

class Kind:
    __slots__ = ("a_slot",)

    def method(self, wanted="a_default"):
        "Documented."
        return {"key_one": 1, "key_two": self}, "a_word", "two words", len(key_word="x")

    async def waits(self):
        return [each for each in self if (lambda: each)()]
"""
SCRIPT = """
import sys
from lighter.shim import names
found = names.names_in("some.where", sys.argv[1])
assert names.names_in("some.where", sys.argv[1] + "/empty") == set()
print(*sorted(name.decode() for name in found))
"""
MADE = """
import sys
from lighter.shim import names, packing
one, two = names.make_names({b"a_name_of_nobody", b"another_one"})
print(one is sys.intern("a_name_" + "of_nobody"))
print(two is compile("another_one", "x", "eval").co_names[0])
gaps = packing.fill_gaps()
names.make_modules(["lighter.proto.version", "lighter.proto.events"])
from lighter.proto import events, version, names as others
print(version.VERSION > "0", events.START, version.__spec__.name, others.__name__)
gap = id(events) - id(version)
print(abs(gap) <= 128)
"""


def run(script: str, *argv: str) -> list[str]:
    command = [sys.executable, "-I", "-c", script, *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_names_are_those_that_functions_hand_around(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(MODULE)
    (tmp_path / "bad.py").write_text("not Python")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    words = set(run(SCRIPT, str(tmp_path))[0].split())
    assert {"some.where.good", "some.where.bad", "key_one", "key_two", "a_word", "waits"} <= words
    # Not loaded with the functions, or not handed around, or with a copy of its own.
    assert not words & {"only_at_import", "a_slot", "method", "wanted", "two", "Documented."}


def test_they_are_made_once_and_modules_are_filled_by_their_import() -> None:
    assert run(MADE) == [
        "True",
        "True",
        "True /tasks/start lighter.proto.version lighter.proto.names",
        "True",
    ]
