"""Command lines as our own reading takes them, beside what click makes of the same grammar."""

import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighter.ctl import clicked, grammar
from lighter.ctl.cli import Session, ctl
from lighter.ctl.grammar import Command, Group, Parameter
from lighter.ctl.reading import read

Seen = list[tuple[str, dict[str, Any], set[str]]]


def commands(group: Group = ctl, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command's words."""
    for name in group.names():
        found = group.find(name)
        assert found is not None
        if isinstance(found, Group):
            yield from commands(found, *path, name)
        else:
            yield (*path, name)


PATHS = list(commands())
EXAMPLES = 12  # of each command
# Words that look like options, that mean something to one kind or another, and that are nothing.
ODD = (
    *(
        "",
        "-",
        "--",
        "--no",
        "-x",
        "-1",
        "=",
        "a=b",
        "1.",
        "1e3",
        "1m30s",
        "RTMIN+1",
        "é",
        "\udc80",
    ),
    *("10s", "512k", "json", "missing", "all", "1.5", "7", "/tmp"),
)
FITTING = {
    "duration": ("10s", "1m30s", "500ms", "1.5", "0"),
    "size": ("512k", "2GiB", "0", "65536"),
    "signal": ("TERM", "sigkill", "9", "RTMIN+1"),
    "integer": ("7", "0", "-1", "١", "9" * 20),
    "float": ("1.5", "7", "nan"),
    "driver": ("file", "none", "local"),
    "lines": ("all", "7"),
    "time": ("2026-01-31T12:00:00Z", "10m"),
    "moment": ("7", "2026-01-31T12:00:00Z", "@1700000000.5", "10m"),
}
PLAIN = ("box", "img", "a=b", "x", "")


def test_all_commands_are_here() -> None:
    assert len(PATHS) > 100


def followed(words: tuple[str, ...]) -> list[Command]:
    """The commands that lead to one, the outermost first."""
    steps: list[Command] = [ctl]
    for word in words:
        group = steps[-1]
        assert isinstance(group, Group)
        found = group.find(word)
        assert found is not None
        steps.append(found)
    return steps


def word_for(parameter: Parameter) -> st.SearchStrategy[str]:
    """A word that fits, and now and then another."""
    kind = parameter.kind
    fitting = kind.words if isinstance(kind, grammar.Choice) else FITTING.get(kind.name, PLAIN)
    return st.one_of(*[st.sampled_from(fitting)] * 4, st.sampled_from(ODD))


def an_option(parameter: Parameter) -> st.SearchStrategy[list[str]]:
    names = st.sampled_from([*parameter.names, *parameter.off_names])
    if parameter.is_flag:
        tails = st.sampled_from(("", "", "", "=true", "=0", "=F", "=yes"))
        return st.builds(lambda name, tail: [name + tail], names, tails)
    return st.one_of(
        st.builds(lambda name, word: [name, word], names, word_for(parameter)),
        st.builds(
            lambda name, word: [f"{name}={word}" if name[:2] == "--" else name + word],
            names,
            word_for(parameter),
        ),
    )


@cache
def line(command: Command) -> st.SearchStrategy[list[str]]:
    """What may follow a command's name: options and arguments, as they come; mostly right."""
    options = [p for p in command.parameters if p.is_option and not p.eager]
    arguments = [p for p in command.parameters if not p.is_option]
    letters = [p.names[-1][1] for p in options if p.is_flag and len(p.names[-1]) == 2]
    optional = [an_option(p) for p in options]
    if letters:
        cluster = st.lists(st.sampled_from(letters), min_size=1, max_size=3)
        optional.append(cluster.map(lambda some: ["-" + "".join(some)]))
    parts = [an_option(p) for p in options if p.required]
    for parameter in arguments:
        one = word_for(parameter).map(lambda word: [word])
        parts += [one, *([st.lists(word_for(parameter), max_size=3)] if parameter.rest else [])]
    some = st.lists(st.one_of(optional), max_size=3) if optional else st.just([])
    stray = st.one_of(*[st.just([])] * 5, st.sampled_from(ODD).map(lambda word: [word]))

    def joined(drawn: tuple[tuple[list[str], ...], list[list[str]], list[str], bool]) -> list[str]:
        fixed, options, stray, options_first = drawn
        ordered = [*options, *fixed] if options_first else [*fixed, *options]
        return [word for part in (*ordered, stray) for word in part]

    return st.tuples(st.tuples(*parts), some, stray, st.booleans()).map(joined)


def recorded(command: Command, seen: Seen) -> Command:
    """A copy of a command that says what it is called with, in place of doing it."""

    def call(session: Session, **values: Any) -> None:
        seen.append((command.name, values, set(session.given)))

    if isinstance(command, Group):
        copy: Command = Group(command.name, call)
    else:
        copy = Command(command.name, call)
        copy.interspersed = command.interspersed
        copy.late_flags = command.late_flags
    copy.parameters = command.parameters
    return copy


@cache
def tree(words: tuple[str, ...]) -> tuple[Group, Seen]:
    """A recording copy of the commands that lead to one, and what they say."""
    seen: Seen = []
    copies = [recorded(command, seen) for command in followed(words)]
    for group, command in pairwise(copies):
        assert isinstance(group, Group)
        group.add(command)
    root = copies[0]
    assert isinstance(root, Group)
    return root, seen


def by_click(root: Group, args: list[str], session: Session) -> bool:
    """Whether click takes a line."""
    return clicked.run(root, "ctl", args, session) is None


def settled(seen: Seen) -> Seen:
    """Without the moment at which "10 m ago" was read, of which two readings differ."""
    return [
        (name, {key: _settled(value) for key, value in values.items()}, given_)
        for name, values, given_ in seen
    ]


def _settled(value: Any) -> Any:
    match value:
        case ("time", int(moment)):
            return "time", round(moment, -12)
        case int() if value > 10**15:
            return round(value, -12)
        case float() if value != value:  # not a number
            return "nan"
    return value


@st.composite
def lines(draw: st.DrawFn, words: tuple[str, ...]) -> list[str]:
    *outer, command = followed(words)
    args: list[str] = []
    for group, name in zip(outer, words, strict=True):
        needs = any(p.required for p in group.parameters)  # few lines are read without it
        args += [*draw(line(group) if needs else st.one_of(st.just([]), line(group))), name]
    return args + draw(line(command))


def held_together(words: tuple[str, ...], args: list[str]) -> bool:
    """Read a line here and by click, and compare; whether it is one that is read here."""
    root, seen = tree(words)
    steps = read(root, args)
    if steps is None:
        return False
    session, theirs_session = Session(), Session()
    seen.clear()
    refused = False
    try:
        for step in steps:
            step.take(session)
    except grammar.UsageError:
        refused = True
    ours = settled(seen)
    seen.clear()
    assert by_click(root, args, theirs_session) is not refused
    assert ours == settled(seen)
    session.given = theirs_session.given = {}
    assert vars(session) == vars(theirs_session)
    return True


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_what_is_read_here_is_what_click_reads(words: tuple[str, ...]) -> None:
    read_here = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(args=lines(words))
    def compare(args: list[str]) -> None:
        nonlocal read_here
        read_here += held_together(words, args)

    compare()
    assert read_here, "not one of these lines was read here"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("run --rm=true img c1", {"rm": True}),
        ("run --rm --rm=false img c1", {"rm": False}),
        ("run --rm=false --rm img c1", {"rm": True}),
        ("run -it=1 --rm=T img sh --rm=x", {"interactive": True, "tty": True, "rm": True}),
        ("run -it -i=f --name c1 img", {"interactive": False, "tty": True}),
        ("run -e --rm=true img c1", {"env": ("--rm=true",), "rm": False}),
        ("run --privileged=False --name=true img", {"privileged": False, "name": "true"}),
        ("commit --pause=false c1 img", {"pause": False}),
        ("commit c1 img -p=0", {"pause": False}),
        ("commit --no-pause=false c1 img", {"pause": True}),
        ("containers create img c1 --tty=true --with-ns=a=b", {"tty": True}),
        ("stop -- --force=true", {"refs": ("--force=true",)}),
    ],
)
def test_flags_are_told_with_a_sign_as_docker_takes_it(line: str, wanted: dict[str, Any]) -> None:
    args = line.split()
    steps = read(ctl, args)
    assert steps is not None
    values = steps[-1].values
    assert {name: values[name] for name in wanted} == wanted
    path = tuple(step.command.name for step in steps[1:])
    assert held_together(path, args)


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_a_function_takes_what_its_grammar_gives(words: tuple[str, ...]) -> None:
    for command in followed(words):
        names = {p.dest: None for p in command.parameters if p.apply is None}
        inspect.signature(command.callback).bind(Session(), **names)
