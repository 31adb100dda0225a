"""Copies of what ran: they are in its place, do what it did, and lie together."""

import subprocess
import sys

CODE = """
import json.encoder
from lighter.shim import copies

def outer(number):
    def inner():
        return [number + other for other in range(2)]
    return inner

def idle():
    return outer(3)

before = {one: id(one.__code__) for one in (outer, idle, json.encoder.JSONEncoder.encode)}
with copies.code_together():
    made = outer(1)
    assert made() == [1, 2]
print([id(one.__code__) != was for one, was in before.items()])
again, later = outer(1), idle()
assert made() == again() == [1, 2] and later() == [3, 4]
assert again.__code__ is later.__code__
"""
FUNCTIONS = """
import contextlib
from lighter.shim import copies

class Base:
    def told(self):
        return "base"

class Made(Base):
    kept = {}
    def told(self, *, word="a word, "):
        return super().told() + word + repr((1.5, -0.0, b"two, three", 70000, ("x y", ("z",))))
    @property
    def size(self):
        "How much."
        return 1 << 20
    @size.setter
    def size(self, size):
        self.kept["size"] = size
    @staticmethod
    def apart():
        return "apart"
    def idle(self):
        pass
    async def later(self):
        return "later"

@contextlib.contextmanager
def around():
    yield "inside"

def count(start=5000, /, *more, step=7):
    yield from (start + number * step for number in more)

def all_of_it(one):
    one.size = one.size + 1
    with around() as inside:
        pass
    coroutine = one.later()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value = stop.value
    return (one.told(), one.size, one.apart(), inside, list(count(1, 2, 3)), list(count()),
            coroutine.__qualname__, value, one.kept)

one = Made()
names = ("told", "idle", "later")
before = {name: vars(Made)[name] for name in names} | {"size": Made.size}
said, before["count"] = all_of_it(one), count
count.note = "kept"
with copies.code_together():
    assert all_of_it(one) == said
assert all_of_it(one) == said, all_of_it(one)
print(*(vars(Made)[name] is not before[name] for name in names), Made.size is not before["size"])
print(count is not before["count"], count.note, count.__kwdefaults__, count.__name__)
print(Made.size.__doc__, around.__wrapped__.__name__, vars(Made)["told"].__qualname__)
"""
PLACE = """
from lighter.shim import copies

lines = []
for number in range(400):  # each runs, or is like one that does
    lines.append(f"def f{number}(): return 'a text, {number}', {number + 1000}, {number} + 0.5")
exec(chr(10).join(lines))
every = [globals()[f"f{number}"] for number in range(400)]
with copies.code_together():
    for one in every[::20]:
        one()
ran = [globals()[f"f{number}"] for number in range(0, 400, 20)]
touched = [[one, one()[0], one()[1]] for one in ran]
print(*(len({id(kind) // 4096 for kind in kinds}) for kinds in zip(*touched)))
"""


ENUMS = """
import enum, signal
from lighter.shim import copies

before = vars(enum.Enum)["__new__"]
with copies.code_together():
    signal.Signals(9)
print(vars(enum.Enum)["__new__"] is not before)

class Kind(enum.Flag):
    ONE = 1

class Base(enum.Enum):
    def said(self):
        return self.value

class Word(Base):
    HERE = "here"

print(Kind(1), Kind.ONE is Kind(1), Word("here").said(), signal.Signals(15).name)
"""


def run(script: str) -> list[str]:
    argv = [sys.executable, "-I", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_code_that_runs_is_copied_and_stays_what_it_is() -> None:
    assert run(CODE) == ["[True, False, False]"]


def test_an_enum_can_be_made_when_those_of_the_library_have_been_copied() -> None:
    """It compares the functions of the classes that it comes from."""
    assert run(ENUMS) == ["True", "Kind.ONE True here SIGTERM"]


def test_functions_are_replaced_in_modules_classes_and_properties() -> None:
    assert run(FUNCTIONS) == [
        "True False True True",
        "True kept {'step': 7} count",
        "How much. around Made.told",
    ]


def test_functions_and_constants_that_ran_lie_together() -> None:
    """20 of 400: among the others each kind of object would lie on a page of its own."""
    assert all(int(pages) <= 3 for pages in run(PLACE)[0].split())
