"""What every command shares: the global options, groups loaded on first use, argument types.

Loading a group's module only when one of its commands is named keeps `ctl version` from paying
for all others; the table below is all that the top-level help needs.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from lighter.proto.errors import InvalidArgument

if TYPE_CHECKING:
    from lighter.ctl.connect import Manager

DEFAULT_ADDRESS = "/run/lighter/lighter.sock"
CONNECT_TIMEOUT_S = 5.0
FORMATS = ("table", "json")

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

# names (the first is the canonical one), module, attribute, short help
_COMMANDS = (
    ("version", "system", "version", "print the client and server versions"),
    ("containers c container", "container", "containers", "manage containers"),
    ("images image i", "image", "images", "manage images"),
    ("content", "content", "content", "manage content"),
    ("leases lease", "lease", "leases", "manage leases"),
    ("network networks", "network", "network", "manage networks of containers"),
    ("oci", "oci", "oci", "look at OCI specs"),
    ("namespaces namespace ns", "namespace", "namespaces", "manage namespaces"),
    ("snapshots snapshot", "snapshot", "snapshots", "manage snapshots"),
    ("tasks t task", "task", "tasks", "manage tasks"),
    ("volume volumes", "volume", "volumes", "manage volumes"),
    ("run", "run", "run", "run a container"),
    ("pull", "transfer", "pull", "pull an image from a registry"),
    ("push", "transfer", "push", "push an image to a registry"),
    ("login", "registry", "login", "keep a registry's credential"),
    ("logout", "registry", "logout", "forget a registry's credential"),
    ("registry", "registry", "registry", "look at registries"),
    ("events event", "events", "events", "show what happens, as it happens"),
    ("logs", "logs", "logs", "print what a container has written"),
    ("system", "system", "system", "look at the manager itself"),
    ("info", "system", "info", "show what the manager is, and how it is"),
    ("plugins plugin", "plugins", "plugins", "look at the manager's parts"),
    ("shim", "shim", "shim", "reach a container's monitor"),
    ("upgrade", "upgrade", "upgrade", "look ahead to another version"),
    ("create", "starting", "create", "create a container, as docker does"),
    ("start", "starting", "start", "start containers that do not run"),
    ("restart", "starting", "restart", "stop containers and start them again"),
    ("update", "changing", "update", "change limits and restart policy of containers"),
    ("rename", "changing", "rename", "give a container another name"),
    ("wait", "starting", "wait", "wait for containers to end; prints exit codes"),
    ("exec", "short", "exec_", "run a command in a running container"),
    ("attach", "short", "attach", "attach to a running container"),
    ("kill", "short", "kill", "send a signal to containers (KILL)"),
    ("stop", "short", "stop", "stop containers: their stop signal, then KILL"),
    ("pause", "short", "pause", "freeze containers"),
    ("resume", "short", "resume", "let paused containers go on"),
    ("port", "network", "port", "list the published ports of a container"),
    ("ps", "lists", "ps", "list running containers; -a: all"),
    ("ls", "lists", "ls", "list containers"),
    ("rm", "short", "rm", "remove containers"),
    ("stats", "stats", "stats", "show what containers use"),
    ("top", "stats", "top", "list the processes of a container"),
    ("cp", "files", "cp", "copy files from or to a container"),
    ("diff", "files", "diff", "list what a container has changed"),
    ("export", "files", "export", "write a container's files as a tar"),
    ("commit", "files", "commit", "make an image of a container"),
    ("rmi", "files", "rmi", "remove images"),
    ("inspect", "inspect", "inspect", "print all that is known about something"),
)


class Interrupted(Exception):
    """A signal asks ctl itself to end; whatever was changed is put back on the way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


class Session:
    """The global options of one command, and its connection, made when it is first needed."""

    def __init__(self) -> None:
        self.address = DEFAULT_ADDRESS
        self.namespace = "default"
        self.namespace_given = False
        self.timeout_s = 0.0
        self.connect_timeout_s = CONNECT_TIMEOUT_S
        self.format = "table"
        self.detach_keys = b"\x10\x11"
        self.debug = False
        self._manager: Manager | None = None

    @property
    def manager(self) -> "Manager":
        """The conversation with lighterd. Raises Unavailable when it cannot be reached."""
        if self._manager is None:
            from lighter.ctl.connect import Manager

            self._manager = Manager(
                self.address.removeprefix("unix://"),
                self.namespace,
                connect_timeout_s=self.connect_timeout_s or CONNECT_TIMEOUT_S,
                timeout_s=self.timeout_s or None,
                trace=self.complain if self.debug else None,
            )
        return self._manager

    @property
    def json(self) -> bool:
        return self.format == "json"

    def call(self, method: str, **body: Any) -> Any:
        """One call, "service.method"; returns its answer's body, raises what was answered."""
        return self.manager.call(method, **body)

    def complain(self, message: str) -> None:
        """One line on standard error."""
        from lighter.ctl.output import visible

        if sys.stderr is not None:
            print(f"ctl: {visible(message)}", file=sys.stderr, flush=True)

    def warn(self, messages: Sequence[str]) -> None:
        for message in messages:
            self.complain(f"warning: {message}")

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._manager is not None:
            self._manager.close()


class Commands(click.Group):
    """A group whose commands may have further names and may be loaded when first used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", HELP_OPTIONS)
        super().__init__(*args, **kwargs)
        self._aliases: dict[str, str] = {}
        self._lazy: dict[str, tuple[str, str, str]] = {}

    def later(self, names: str, module: str, attribute: str, help_line: str) -> None:
        """Add a command that stands in `lighter.ctl.<module>`."""
        name, *aliases = names.split()
        self._lazy[name] = (module, attribute, help_line)
        self._aliases.update(dict.fromkeys(aliases, name))

    def verb(self, names: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
        """Like `command`, with all names in one text, the canonical one first."""
        name, *aliases = names.split()
        self._aliases.update(dict.fromkeys(aliases, name))
        attributes.setdefault("context_settings", HELP_OPTIONS)
        return self.command(name, **attributes)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self._aliases.get(cmd_name, cmd_name)
        if name not in self._lazy:
            return super().get_command(ctx, name)
        from importlib import import_module

        module, attribute, _help = self._lazy[name]
        command = getattr(import_module(f"lighter.ctl.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            names = [name, *(alias for alias, to in self._aliases.items() if to == name)]
            if name in self._lazy:
                text = self._lazy[name][2]
            else:
                text = self.commands[name].get_short_help_str(60)
            rows.append((", ".join(names), text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Duration(click.ParamType[float]):
    """Go's notation, `1m30s` or `500ms`, or a plain number of seconds; converts to seconds."""

    name = "duration"
    _UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        import re

        if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
            return float(value)
        part = r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)"
        if not re.fullmatch(f"({part})+", value, re.ASCII):
            self.fail(f"{value!r} is no duration such as 10s, 1m30s or 500ms", param, ctx)
        return sum(float(n) * self._UNITS[unit] for n, unit in re.findall(part, value, re.ASCII))


class Size(click.ParamType[int]):
    """A number of bytes, or one with k, m, g or t (powers of 1024); converts to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        import re

        found = re.fullmatch(r"(\d+)(?:([kmgt])(?:i?b)?|b)?", value.lower(), re.ASCII)
        if not found:
            self.fail(f"{value!r} is no size such as 65536, 512k, 10m or 1g", param, ctx)
        return int(found[1]) << (10 * " kmgt".index(found[2] or " "))


class Signal(click.ParamType[int]):
    """A signal by name, with or without SIG, or by number; converts to its number."""

    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value.isascii() and value.isdigit():
            number = int(value)
        else:
            name, plus, offset = value.upper().removeprefix("SIG").partition("+")
            number = int(getattr(signal, f"SIG{name}", 0))
            if plus and name == "RTMIN" and offset.isascii() and offset.isdigit():
                number += int(offset)
            elif plus:
                number = 0
        if not 1 <= number <= signal.SIGRTMAX:
            self.fail(f"{value!r} is no signal", param, ctx)
        return number


DURATION = Duration()
SIZE = Size()
SIGNAL = Signal()


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` after the verb too, where it is looked for first."""

    def choose(context: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value:
            context.ensure_object(Session).format = value

    return click.option(
        "--format",
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=choose,
        help="A table, or JSON.",
    )(command)


def detach_keys_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--detach-keys, for what may be left with its terminal."""

    def choose(context: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        from lighter.ctl.stdio import parse_keys

        try:
            context.ensure_object(Session).detach_keys = parse_keys(value)
        except ValueError as err:
            raise click.UsageError(f"--detach-keys {value!r}: {str(err)!r} is no key") from err

    return click.option(
        "--detach-keys",
        expose_value=False,
        callback=choose,
        metavar="KEYS",
        help='What leaves a terminal; "": nothing.  [default: ctrl-p,ctrl-q]',
    )(command)


def fifo_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--fifo-dir, for processes that are started and left."""
    return click.option(
        "--fifo-dir",
        type=click.Path(),
        default="",
        help="With -d: make FIFOs for the streams in a new directory there.",
    )(command)


def key_values(words: Sequence[str], what: str, *, bare: bool = False) -> dict[str, str]:
    """`key=value` words as a map. `bare`: a word without "=" is a key with the value ""."""
    labels: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not key or not (sign or bare):
            raise click.UsageError(f"{what} {word!r}: expected key=value")
        labels[key] = value
    return labels


def absolute(path: str) -> str:
    """`path` seen from ctl's own working directory."""
    return os.path.abspath(path)


def read_text(path: str, what: str) -> str:
    """The text of a file that an option names. Raises InvalidArgument."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is not UTF-8 text"
        raise InvalidArgument(f"read {what} {path}: {reason}") from err


def _print_version(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from lighter.proto.version import VERSION

        print(f"ctl version {VERSION}")
        context.exit()


@click.group("ctl", cls=Commands)
@click.option(
    "--address",
    "-a",
    envvar="LIGHTER_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    show_envvar=True,
    help="The manager's socket.",
)
@click.option(
    "--namespace",
    "-n",
    envvar=["LIGHTER_NAMESPACE", "CONTAINERD_NAMESPACE"],
    help="Namespace of the containers and images.  [default: default]",
    show_envvar=True,
)
@click.option("--timeout", type=DURATION, default="0s", help="Limit for the whole command.")
@click.option(
    "--connect-timeout",
    type=DURATION,
    default="5s",
    show_default=True,
    help="How long to wait for a manager that is away.",
)
@click.option("--debug", is_flag=True, help="Show calls, their times, and where an error arose.")
@click.option(
    "--format", type=click.Choice(FORMATS), default="table", show_default=True, help="Of output."
)
@click.option(
    "--version",
    "-v",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print ctl's version.",
)
@click.pass_context
def ctl(
    context: click.Context,
    address: str,
    namespace: str | None,
    timeout: float,
    connect_timeout: float,
    debug: bool,
    format: str,  # noqa: A002 (the option's name)
) -> None:
    """Manage containers, images and namespaces of a lighterd.

    The noun-verb forms (`ctl tasks kill`) are ctr's; the short verbs (`ctl kill`) are docker's.

    \b
      ctl images import nginx.img
      ctl run -d --net-host docker.io/library/nginx:alpine web
      ctl exec -it web sh
      ctl stop web && ctl rm web
    """
    session = context.ensure_object(Session)
    session.address = address
    session.namespace = namespace or "default"
    session.namespace_given = bool(namespace)
    session.timeout_s = timeout
    session.connect_timeout_s = connect_timeout
    session.debug = debug
    session.format = format


for _names, _module, _attribute, _help in _COMMANDS:
    ctl.later(_names, _module, _attribute, _help)


@ctl.verb("help h", context_settings={"ignore_unknown_options": True, **HELP_OPTIONS})
@click.argument("words", nargs=-1)
@click.pass_context
def help_(context: click.Context, words: tuple[str, ...]) -> None:
    """show the help of a command"""
    command: click.Command = ctl
    parent = context.parent
    assert parent is not None
    where = parent
    for word in words:
        found = command.get_command(where, word) if isinstance(command, click.Group) else None
        if found is None:
            raise click.UsageError(f"no such command: {' '.join(words)}")
        where = click.Context(found, info_name=found.name, parent=where)
        command = found
    print(command.get_help(where))
