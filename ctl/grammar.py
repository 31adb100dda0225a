"""The grammar of the command line, as data: what commands, options and arguments there are.

A module of commands says with these decorators what click would be told, in click's own words. A
correct command line is then read by `reading`, which needs nothing else. click itself, whose import
takes longer than most commands do, is loaded for what it does best: help, completion and the words
for what is wrong. `clicked` makes its commands of the same data, so there is one truth.

Annotations are never evaluated in what every command loads: `typing` alone takes 10 ms to import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib import import_module
    from typing import Any

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
else:
    # The same function; what `importlib` brings besides takes half a millisecond.
    from _frozen_importlib import _gcd_import as import_module


# What a message can carry.
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 63) - 1


class UsageError(Exception):
    """The command line asks for what cannot be meant; shown with the command's usage."""


class BadValue(UsageError):
    """A word that its `Kind` does not know."""


class Done(Exception):
    """An option has done all that was asked for, such as --version."""


class Kind:
    """What the word of an option or argument becomes. `name` is what help calls it."""

    name = "text"

    def convert(self, text: str) -> Any:
        """The value of a word. Raises BadValue."""
        return text


class Integer(Kind):
    """A whole number, within bounds where they are given; a message has 64 bits for it."""

    name = "integer"

    def __init__(self, low: int | None = None, high: int | None = None) -> None:
        self.low = low
        self.high = high

    def convert(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise BadValue(f"{text!r} is no number") from None
        low = MIN_INTEGER if self.low is None else self.low
        high = MAX_INTEGER if self.high is None else self.high
        if not low <= number <= high:
            raise BadValue(f"{text!r} is not in the range {low} to {high}")
        return number


class Float(Kind):
    name = "float"

    def convert(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise BadValue(f"{text!r} is no number") from None


class Choice(Kind):
    """One of `words`."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)

    def convert(self, text: str) -> str:
        if text not in self.words:
            raise BadValue(f"{text!r} is not one of {', '.join(self.words)}")
        return text


class Path(Kind):
    """The name of a file, which the shell completes; there need be none."""

    name = "path"


PATH = Path()
RAW = Kind()  # whatever it is, also what looks like an option
_PLAIN: dict[type, Kind] = {str: Kind(), int: Integer(), float: Float()}


class Parameter:
    """An option or an argument.

    `names` are an option's words, `off_names` those that switch it off, both empty for an argument;
    `dest` is the name of the value. `constant` is what a flag sets. `apply`, called as
    `apply(session, value)` when the option is given, takes the place of a value. `shown` is what
    help alone needs, in click's words.
    """

    __slots__ = (
        *("apply", "constant", "default", "dest", "eager", "envvar", "is_flag", "kind"),
        *("multiple", "names", "off_names", "required", "rest", "shown"),
    )

    def __init__(
        self,
        words: tuple[str, ...],
        *,
        type: type | Kind = str,  # noqa: A002 (click's word, as all of these)
        default: Any = None,
        is_flag: bool = False,
        flag_value: str | None = None,
        multiple: bool = False,
        envvar: str | list[str] | None = None,
        required: bool = False,
        nargs: int = 1,
        is_eager: bool = False,
        apply: Callable[[Any, Any], None] | None = None,
        **shown: Any,
    ) -> None:
        dashed = [word for word in words if word.startswith("-")]
        on = [word.partition("/") for word in dashed]
        self.names = tuple(name for name, _, _ in on)
        self.off_names = tuple(off for _, _, off in on if off)
        bare = [word for word in words if not word.startswith("-")]
        longest = max(self.names, key=_dashes, default="")
        self.dest = bare[0] if bare else longest.lstrip("-").replace("-", "_").lower()
        self.is_flag = is_flag or flag_value is not None or bool(self.off_names)
        self.constant = True if flag_value is None else flag_value
        self.kind = type if isinstance(type, Kind) else _PLAIN[type]
        self.multiple = multiple
        self.rest = nargs == -1
        if default is None and (multiple or self.rest):
            default = ()
        elif default is None and self.is_flag and flag_value is None:
            default = False
        self.default = default
        self.envvar = [envvar] if isinstance(envvar, str) else envvar or []
        self.required = required
        self.eager = is_eager
        self.apply = apply
        self.shown = shown

    @property
    def is_option(self) -> bool:
        return bool(self.names)


def _dashes(name: str) -> int:
    return len(name) - len(name.lstrip("-"))


class Command:
    """A command, or a group's own words before its command.

    `interspersed`: options may stand between and after arguments. `late_flags`: how many words may
    stand before the last options of one that is not interspersed.
    """

    def __init__(
        self,
        name: str,
        callback: Callable[..., Any],
        *,
        interspersed: bool = True,
        late_flags: int = 0,
        short_help: str = "",
        options_metavar: str = "[OPTIONS]",
    ) -> None:
        self.name = name
        self.callback = callback
        self.help = callback.__doc__ or ""
        self.parameters: tuple[Parameter, ...] = tuple(
            reversed(callback.__dict__.pop("parameters", ()))
        )
        self.interspersed = interspersed
        self.late_flags = late_flags
        self.short_help = short_help
        self.options_metavar = options_metavar


class Group(Command):
    """Commands by name, which may have further names, and may be loaded when first used."""

    def __init__(self, name: str, callback: Callable[..., Any]) -> None:
        super().__init__(name, callback, interspersed=False)
        self.aliases: dict[str, str] = {}
        self._commands: dict[str, Command] = {}
        self._lazy: dict[str, tuple[str, str, str]] = {}

    def later(self, names: str, module: str, attribute: str, help_line: str) -> None:
        """Add a command that stands in `lighter.ctl.<module>`."""
        self._lazy[self._canonical(names)] = (module, attribute, help_line)

    def add(self, command: Command) -> None:
        self._commands[command.name] = command

    def verb(self, names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
        """Add the decorated function; all names in one text, the canonical one first."""

        def decorate(callback: Callable[..., Any]) -> Command:
            made = Command(self._canonical(names), callback, **attributes)
            self.add(made)
            return made

        return decorate

    def _canonical(self, names: str) -> str:
        name, *aliases = names.split()
        self.aliases.update(dict.fromkeys(aliases, name))
        return name

    def names(self) -> Iterator[str]:
        """Canonical names, in the order that help shows."""
        yield from self._lazy
        yield from self._commands

    def help_line(self, name: str) -> str | None:
        """What help says of a command that is loaded when first used; None of others."""
        return self._lazy[name][2] if name in self._lazy else None

    def find(self, name: str) -> Command | None:
        """The command of that name, canonical or not."""
        name = self.aliases.get(name, name)
        if name not in self._lazy:
            return self._commands.get(name)
        module, attribute, _help = self._lazy[name]
        command = getattr(import_module(f"lighter.ctl.{module}"), attribute)
        assert isinstance(command, Command)
        return command


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """A command, called as `callback(session, **values)`; an int that it returns is ctl's exit
    code. Its docstring is its help; lines after a `\\b` stand as they are."""

    def decorate(callback: Callable[..., Any]) -> Command:
        return Command(name, callback, **attributes)

    return decorate


def group(name: str) -> Callable[[Callable[..., Any]], Group]:
    """A group; its function is called with its own values before the command's."""

    def decorate(callback: Callable[..., Any]) -> Group:
        return Group(name, callback)

    return decorate


def option(*names: str, **attributes: Any) -> Decorator:
    """An option of the decorated function: see Parameter."""
    return _declared(names, attributes)


def in_any_case(name: str, said: str) -> Decorator:
    """A flag of ctr's that asks for what is done without it too."""
    return option(
        name,
        f"{name.lstrip('-').replace('-', '_')}_anyway",
        is_flag=True,
        apply=lambda _session, _value: None,
        help=f"As ctr has it; {said} in any case.",
    )


def argument(name: str, **attributes: Any) -> Decorator:
    """An argument of the decorated function; one without a default is required."""
    optional = "default" in attributes or attributes.get("nargs") == -1
    attributes.setdefault("required", not optional)
    return _declared((name,), attributes)


def _declared(names: tuple[str, ...], attributes: dict[str, Any]) -> Decorator:
    parameter = Parameter(names, **attributes)

    def decorate(callback: Callable[..., Any]) -> Callable[..., Any]:
        callback.__dict__.setdefault("parameters", []).append(parameter)
        return callback

    return decorate
