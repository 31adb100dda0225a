"""click's commands, made of our grammar: help, completion, and the words for what is wrong.

Loaded when a command line is not plainly right. What is right is run from here too, with the same
functions and the same values.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import shell_complete

from lighter.ctl import grammar
from lighter.ctl.cli import Session
from lighter.ctl.reading import with_late_flags, with_plain_flags

_HELP_NAMES = ["-h", "--help"]
USAGE = 2


def run(root: grammar.Group, name: str, args: list[str], session: Session) -> Any:
    """What the command's function returns; an exit code of click's. Raises what they raise."""
    try:
        with clicked(root).make_context(name, args, obj=session) as context:
            return context.command.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except click.Abort:
        raise KeyboardInterrupt from None


def explain(path: Sequence[grammar.Command], name: str, error: grammar.UsageError) -> int:
    """Print what is wrong with the use of the last command of `path`; returns the exit code."""
    context: click.Context | None = None
    for command in path:
        shown = name if context is None else command.name
        context = click.Context(clicked(command), info_name=shown, parent=context)
    click.UsageError(str(error), context).show()
    return USAGE


def complete(root: grammar.Group, name: str, variable: str, instruction: str) -> int:
    """Print what the shell asks for: words that fit, or its completion script."""
    return shell_complete(clicked(root), {"obj": Session()}, name, variable, instruction)


@cache
def clicked(command: grammar.Command) -> click.Command:
    """click's form of a command; those of a group are made when they are asked for."""
    settings: dict[str, Any] = {
        "name": command.name,
        "callback": _callback(command),
        "params": [_parameter(parameter) for parameter in command.parameters],
        "help": command.help,
        "short_help": command.short_help or None,
        "context_settings": {
            "help_option_names": _help_names(command),
            "allow_interspersed_args": command.interspersed,
        },
    }
    if isinstance(command, grammar.Group):
        return _Commands(command, **settings)
    settings["options_metavar"] = command.options_metavar
    return (_Late if command.late_flags else _Plain)(command, **settings)


def _help_names(command: grammar.Command) -> list[str]:
    """How help is asked for: by what means nothing else to the command."""
    taken = {name for parameter in command.parameters for name in parameter.names}
    return [name for name in _HELP_NAMES if name not in taken]


def _callback(command: grammar.Command) -> Callable[..., Any]:
    def call(**values: Any) -> Any:
        context = click.get_current_context()
        session = context.ensure_object(Session)
        session.given = {
            parameter.dest: max(parameter.names, key=len)
            for parameter in command.parameters
            if parameter.is_option
            and context.get_parameter_source(parameter.dest) is ParameterSource.COMMANDLINE
        }
        try:
            return command.callback(session, **values)
        except grammar.UsageError as error:
            raise click.UsageError(str(error), context) from error

    return call


def _parameter(parameter: grammar.Parameter) -> click.Parameter:
    attributes = {**parameter.shown, "type": _type(parameter), "required": parameter.required}
    if parameter.default not in (None, ()):
        attributes["default"] = parameter.default
    if not parameter.is_option:
        return click.Argument([parameter.dest], nargs=-1 if parameter.rest else 1, **attributes)
    names = [*parameter.names, *parameter.off_names]
    if parameter.off_names:
        names = [f"{parameter.names[0]}/{parameter.off_names[0]}", *parameter.names[1:]]
    if parameter.is_flag:
        attributes["is_flag"] = True
        del attributes["type"]
        if parameter.constant is not True:
            attributes["flag_value"] = parameter.constant
    if parameter.apply is not None:
        attributes["callback"] = _applied(parameter.apply)
    return click.Option(
        [*names, parameter.dest],
        multiple=parameter.multiple,
        envvar=parameter.envvar or None,
        is_eager=parameter.eager,
        expose_value=parameter.apply is None,
        **attributes,
    )


def _applied(apply: Callable[[Any, Any], None]) -> Callable[..., None]:
    def act(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is None or value is False:
            return
        try:
            apply(context.ensure_object(Session), value)
        except grammar.UsageError as error:
            raise click.UsageError(str(error), context) from error

    return act


class _Kind(click.ParamType[Any]):
    """A kind of ours; what is converted already, such as a default, stays."""

    def __init__(self, kind: grammar.Kind) -> None:
        self.name = kind.name
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._kind.convert(value)
        except grammar.BadValue as error:
            self.fail(str(error), param, ctx)


class _Range(click.IntRange):
    """With help's words for bounds, and never more than a message can carry."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not grammar.MIN_INTEGER <= number <= grammar.MAX_INTEGER:
            self.fail(f"{value!r} is more than a message can carry", param, ctx)
        return number


def _type(parameter: grammar.Parameter) -> Any:
    match parameter.kind:
        case grammar.Choice(words=words):
            return click.Choice(words)
        case grammar.Integer(low=None, high=None):
            return _Kind(parameter.kind)
        case grammar.Integer(low=low, high=high):
            return _Range(low, high)
        case grammar.Float():
            return float
        case grammar.PATH:
            # The file may be one to be made, or one for the manager alone to read.
            return click.Path(readable=False)
        case grammar.RAW:
            return click.UNPROCESSED
        case kind if type(kind) is grammar.Kind:
            return str
        case kind:
            return _Kind(kind)


class _Plain(click.Command):
    """Takes `--flag=true` and `--flag=false`."""

    def __init__(self, command: grammar.Command, **settings: Any) -> None:
        super().__init__(**settings)
        self._of = command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_plain_flags(self._of, args))


class _Late(_Plain):
    """Takes options after the first words too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        def beside(part: list[str]) -> list[str]:
            """What follows leading options. Raises click's own usage errors."""
            values, _left, _order = self.make_parser(ctx).parse_args(args=list(part))
            words = values["words"]
            return list(words) if isinstance(words, tuple | list) else []

        plain = with_plain_flags(self._of, args)
        return super().parse_args(ctx, with_late_flags(plain, self._of.late_flags, beside))


class _Commands(_Plain, click.Group):
    """A group of ours; the outermost one has `help` beside."""

    _of: grammar.Group

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._of.names(), *(["help"] if ctx.parent is None else [])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if ctx.parent is None and cmd_name in ("help", "h"):
            return help_
        found = self._of.find(cmd_name)
        return None if found is None else clicked(found)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._rows(ctx)))

    def _rows(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        aliases = {**self._of.aliases, **({"h": "help"} if ctx.parent is None else {})}
        for name in self.list_commands(ctx):
            text = self._of.help_line(name)
            if text is None:
                command = self.get_command(ctx, name)
                assert command is not None, name
                text = command.get_short_help_str(60)
            names = [name, *(alias for alias, to in aliases.items() if to == name)]
            yield ", ".join(names), text


@click.command(
    "help", context_settings={"ignore_unknown_options": True, "help_option_names": _HELP_NAMES}
)
@click.argument("words", nargs=-1)
@click.pass_context
def help_(context: click.Context, words: tuple[str, ...]) -> None:
    """show the help of a command"""
    where = context.parent
    assert where is not None
    for word in words:
        command = where.command
        found = command.get_command(where, word) if isinstance(command, click.Group) else None
        if found is None:
            raise click.UsageError(f"no such command: {' '.join(words)}")
        where = click.Context(found, info_name=found.name, parent=where)
    print(where.command.get_help(where))
