"""Read a command line by its grammar as click would, or leave it to click.

Only what is beyond doubt is read here: known names, values that their kinds take, all arguments
there. For anything else (help, a mistake, a group without a command) the answer is None, nothing
has happened yet, and click is asked, which says in full what is wrong.
"""

from __future__ import annotations

import posix
import sys

from lighter.ctl.grammar import BadValue, Command, Group, Parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lighter.ctl.cli import Session

    Names = dict[str, tuple[Parameter, Any]]
    Said = list[tuple[Parameter | None, str]]
    Found = list[tuple[Parameter, Any]]


# What Go takes for a bool: docker's flags are told with `=` so.
_YES = ("1", "t", "T", "true", "TRUE", "True")
_NO = ("0", "f", "F", "false", "FALSE", "False")


class Step:
    """One command of a line, with what it was given.

    `values` go to its function; `effects` are options that act by themselves; `given` says how each
    value that was named on the line is spelt in full.
    """

    __slots__ = ("command", "effects", "given", "values")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.values: dict[str, Any] = {}
        self.effects: list[tuple[Callable[[Any, Any], None], Any]] = []
        self.given: dict[str, str] = {}

    def take(self, session: Session) -> Any:
        """Do what it says; returns what its function does. Raises UsageError."""
        for apply, value in self.effects:
            apply(session, value)
        session.given = self.given
        return self.command.callback(session, **self.values)


class _Unclear(Exception):
    """Something that click has to look at."""


def read(root: Group, args: list[str]) -> list[Step] | None:
    """The steps of a command line, from the outermost group to the command; None: ask click."""
    steps: list[Step] = []
    command: Command = root
    try:
        while True:
            step, words = _step(command, args)
            steps.append(step)
            if not isinstance(command, Group):
                _take_arguments(step, words)
                return steps
            found = command.find(words[0]) if words else None
            if found is None:
                return None
            command, args = found, words[1:]
    except (_Unclear, BadValue):
        return None


def _step(command: Command, args: list[str]) -> tuple[Step, list[str]]:
    """A step with what the options of a command say, and the words beside them."""
    by_name = _by_name(command)
    args = with_plain_flags(command, args)
    if command.late_flags:
        args = with_late_flags(args, command.late_flags, lambda part: _scan(by_name, part)[1])
    found, words = _scan(by_name, args, interspersed=command.interspersed)
    step = Step(command)
    said: dict[str, Any] = {}
    for parameter, value in found:
        if parameter.eager:
            raise _Unclear
        if parameter.multiple:
            said.setdefault(parameter.dest, []).append(value)
        else:
            said[parameter.dest] = value
        step.given[parameter.dest] = max(parameter.names, key=len)
    for parameter in command.parameters:
        if not parameter.is_option or parameter.eager:
            continue
        value = _value(parameter, said)
        if parameter.apply is None:
            step.values[parameter.dest] = value
        elif value is not None and value is not False:  # a flag that was not given
            step.effects.append((parameter.apply, value))
    return step, words


def _by_name(command: Command) -> Names:
    """Each name of an option, with the value that it sets when it is a flag, else None."""
    names: Names = {}
    for parameter in command.parameters:
        constant = parameter.constant if parameter.is_flag else None
        names.update(dict.fromkeys(parameter.names, (parameter, constant)))
        names.update(dict.fromkeys(parameter.off_names, (parameter, False)))
    return names


def _scan(
    by_name: Names, args: list[str], *, interspersed: bool = False
) -> tuple[Found, list[str]]:
    """(options with their words or constants, as they come; the words beside them)."""
    found: Found = []
    words: list[str] = []
    rest = list(reversed(args))
    while rest:
        word = rest.pop()
        if word == "--":
            break
        if word[:1] != "-" or len(word) == 1:
            words.append(word)
            if not interspersed:
                break
        elif word[1] == "-":
            name, sign, value = word.partition("=")
            parameter, constant = _named(by_name, name)
            if constant is None:
                found.append((parameter, value if sign else _next(rest)))
            elif sign:
                raise _Unclear
            else:
                found.append((parameter, constant))
        else:
            for at, letter in enumerate(word[1:], start=2):
                parameter, constant = _named(by_name, f"-{letter}")
                if constant is None:
                    found.append((parameter, word[at:] or _next(rest)))
                    break
                found.append((parameter, constant))
    return found, words + rest[::-1]


def _named(by_name: Names, name: str) -> tuple[Parameter, Any]:
    if name not in by_name:
        raise _Unclear
    return by_name[name]


def _next(rest: list[str]) -> str:
    if not rest:
        raise _Unclear
    return rest.pop()


def _value(parameter: Parameter, said: dict[str, Any]) -> Any:
    """What an option comes to: of the line, of the environment, or its default."""
    if parameter.dest in said:
        value = said[parameter.dest]
        if parameter.is_flag:
            return value
        convert = parameter.kind.convert
        return tuple(map(convert, value)) if parameter.multiple else convert(value)
    for name in parameter.envvar:
        if value := variable(name):
            return parameter.kind.convert(value)
    if parameter.required:
        raise _Unclear
    return _default(parameter)


def variable(name: str) -> str:
    """What a variable of the environment says; "" when nothing.

    `os`, which decodes all of them, takes a millisecond to load; where it is, it may know better.
    """
    os = sys.modules.get("os")
    if os is not None:
        return str(os.environ.get(name, ""))
    said = posix.environ.get(name.encode(), b"")
    return said.decode(sys.getfilesystemencoding(), "surrogateescape")


def _default(parameter: Parameter) -> Any:
    default = parameter.default
    return parameter.kind.convert(default) if isinstance(default, str) else default


def _take_arguments(step: Step, words: list[str]) -> None:
    """Give each argument its word; the last one may take all that is left."""
    rest = list(reversed(words))
    for parameter in step.command.parameters:
        if parameter.is_option:
            continue
        convert = parameter.kind.convert
        if parameter.rest:
            value: Any = tuple(map(convert, reversed(rest)))
            rest = []
        elif rest:
            value = convert(rest.pop())
        else:
            value = None
        if parameter.required and value in (None, ()):
            raise _Unclear
        step.values[parameter.dest] = _default(parameter) if value is None else value
    if rest:
        raise _Unclear


def with_late_flags(
    args: list[str], count: int, beside: Callable[[list[str]], list[str]]
) -> list[str]:
    """`args` with the options that stand after the first `count` words put before them.

    `beside` gives what follows leading options. `--` ends the late ones, and so does the first
    other word.
    """
    words = beside(args)
    if len(words) <= count or not words[count].startswith("-"):
        return args
    head = args[: len(args) - len(words)]
    if words[count] == "--":
        return [*head, "--", *words[:count], *words[count + 1 :]]
    tail = words[count:]
    rest = beside(tail)
    late = tail[: len(tail) - len(rest)]
    options = [word for word in (*head, *late) if word != "--"]
    return [*options, "--", *words[:count], *rest]


def with_plain_flags(command: Command, args: list[str]) -> list[str]:
    """`args` with `--flag=true` as `--flag`; `--flag=false` goes, with each `--flag` before it."""
    if not any("=" in word for word in args):
        return args
    by_name = _by_name(command)
    said: Said = []
    words = 0
    rest = list(reversed(args))
    while rest:
        word = rest.pop()
        is_option = word[:1] == "-" and len(word) > 1 and not 0 < words < command.late_flags
        if is_option and word != "--":
            _say(by_name, said, word, rest)
            continue
        said.append((None, word))
        words += 1
        if word == "--" or not (command.interspersed or words <= command.late_flags):
            break
    return [*(word for _, word in said), *reversed(rest)]


def _say(by_name: Names, said: Said, word: str, rest: list[str]) -> None:
    """Add an option's word to those that are `said`, with its value or as single letters."""
    if word[1] == "-":
        name, sign, value = word.partition("=")
        parameter, constant = by_name.get(name, (None, None))
        if parameter is not None and constant is not None and sign:
            _switch(said, parameter, name, constant, value)
            return
        said.append((parameter if constant is not None else None, word))
        if parameter is not None and constant is None and not sign and rest:
            said.append((None, rest.pop()))
        return
    for at, letter in enumerate(word[1:], start=2):
        parameter, constant = by_name.get(f"-{letter}", (None, None))
        if parameter is None or constant is None:
            said.append((None, f"-{word[at - 1 :]}"))
            if parameter is not None and not word[at:] and rest:
                said.append((None, rest.pop()))
            return
        if word[at : at + 1] == "=":
            _switch(said, parameter, f"-{letter}", constant, word[at + 1 :])
            return
        said.append((parameter, f"-{letter}"))


def _switch(said: Said, parameter: Parameter, name: str, constant: Any, word: str) -> None:
    """Add a flag that is told with `=`, or take it away."""
    if not isinstance(constant, bool) or word not in _YES + _NO:
        said.append((None, f"{name}={word}"))
        return
    names = parameter.names if constant is (word in _YES) else parameter.off_names
    if names:
        said.append((parameter, names[0]))
    else:
        said[:] = [entry for entry in said if entry[0] is not parameter]
