"""What every command shares: the global options, groups loaded on first use, kinds of words.

Loading a group's module only when one of its commands is named keeps `ctl version` from paying
for all others; the table below is all that the top-level help needs.
"""

from __future__ import annotations

import sys

from lighter.ctl import grammar
from lighter.proto.errors import InvalidArgument, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any

    from lighter.ctl.connect import Manager

DEFAULT_ADDRESS = "/run/lighter/lighter.sock"
CONNECT_TIMEOUT_S = 5.0
FORMATS = ("table", "json")
SNAPSHOTTER = ["LIGHTER_SNAPSHOTTER", "CONTAINERD_SNAPSHOTTER"]  # of the environment
MAX_DIGITS = 18  # of a number that a message can carry
MAX_SECONDS = 1e9

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
    ("doctor", "doctor", "doctor", "look for what is wrong with this host and manager"),
    ("info", "system", "info", "show what the manager is, and how it is"),
    ("plugins plugin", "plugins", "plugins", "look at the manager's parts"),
    ("shim", "shim", "shim", "reach a container's monitor"),
    ("install", "install", "install", "put programs of an image onto the host"),
    ("deprecations", "deprecations", "deprecations", "look at what is used and will go"),
    ("sandboxes sandbox sb s", "deprecations", "sandboxes", "not to be had here"),
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


class OtherVersion(Unavailable):
    """The manager shares no protocol with this ctl, and nothing was asked of it yet."""


class Unsendable(InvalidArgument):
    """A word that no message can carry: the manager was not asked, but may be asked for the other
    words.
    """


class Session:
    """The global options of one command, and its connection, made when it is first needed."""

    def __init__(self) -> None:
        self.address = DEFAULT_ADDRESS
        self.namespace = "default"
        self.namespace_given = False
        self.forced = False  # what is another program's too
        self.timeout_s = 0.0
        self.connect_timeout_s = CONNECT_TIMEOUT_S
        self.format = "table"
        self.detach_keys = b"\x10\x11"
        self.debug = False
        self.given: dict[str, str] = {}  # how the command's options were spelt that were given
        self.scope = ""  # what the words of a group chose for its commands
        self._manager: Manager | None = None

    @property
    def manager(self) -> Manager:
        """The conversation with lighterd. Raises Unavailable when it cannot be reached."""
        if self._manager is None:
            from lighter.ctl.connect import Manager

            self._manager = Manager(
                self.address.removeprefix("unix://"),
                self.namespace,
                connect_timeout_s=self.connect_timeout_s or CONNECT_TIMEOUT_S,
                timeout_s=self.timeout_s or None,
                trace=self.complain if self.debug else None,
                forced=self.forced,
            )
        return self._manager

    @property
    def json(self) -> bool:
        return self.format == "json"

    def call(self, method: str, **body: Any) -> Any:
        """Make one call, "service.method". Returns the answer's body, or raises the error that was
        answered.
        """
        return self.manager.call(method, **body)

    def complain(self, message: str) -> None:
        """One line on standard error."""
        from lighter.ctl.output import visible

        print(f"ctl: {visible(message)}", file=sys.stderr, flush=True)

    def warn(self, messages: Sequence[str]) -> None:
        for message in messages:
            self.complain(f"warning: {message}")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._manager is not None:
            self._manager.close()


class Duration(grammar.Kind):
    """Go's notation, `1m30s` or `500ms`, or a plain number of seconds; converts to seconds."""

    name = "duration"
    _UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(self, text: str) -> float:
        seconds, rest = 0.0, text
        while True:
            number = _leading(rest, _DIGITS + ".")
            unit = _leading(rest[len(number) :], _LETTERS)
            rest = rest[len(number) + len(unit) :]
            if not _is_decimal(number) or (unit not in self._UNITS and number != text):
                raise grammar.BadValue(f"{text!r} is no duration such as 10s, 1m30s or 500ms")
            seconds += float(number) * self._UNITS.get(unit, 1.0)
            if seconds > MAX_SECONDS:
                raise grammar.BadValue(f"{text!r} is longer than any computer runs")
            if not rest:
                return seconds


class Patience(Duration):
    """As Duration; -1, docker's word, is longer than any container is waited for."""

    def convert(self, text: str) -> float:
        return MAX_SECONDS if text == "-1" else super().convert(text)


class Size(grammar.Kind):
    """A number of bytes, or one with k, m, g or t (powers of 1024); converts to bytes."""

    name = "size"

    def convert(self, text: str) -> int:
        word = text.lower()
        digits = _leading(word, _DIGITS)
        unit = word[len(digits) :]
        if not digits or unit not in _SIZE_UNITS:
            raise grammar.BadValue(f"{text!r} is no size such as 65536, 512k, 10m or 1g")
        size = int(digits[-MAX_DIGITS:]) << (10 * " kmgt".index(unit[:1].strip("b") or " "))
        if len(digits) > MAX_DIGITS or size > grammar.MAX_INTEGER:
            raise grammar.BadValue(f"{text!r} is more than any disk has")
        return size


class Signal(grammar.Kind):
    """A signal by name, with or without SIG, or by number; converts to its number."""

    name = "signal"

    def convert(self, text: str) -> int:
        from lighter.proto.signalnames import signal_number

        number = signal_number(text)
        if number is None:
            raise grammar.BadValue(f"{text!r} is no signal")
        return number


_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SIZE_UNITS = {"", "b", *(unit + tail for unit in "kmgt" for tail in ("", "b", "ib"))}


def _is_decimal(number: str) -> bool:
    """Whether digits and points are a number: `1`, `1.5`."""
    whole, point, part = number.partition(".")
    return bool(whole) and "." not in part and bool(part) == bool(point)


def _leading(text: str, letters: str) -> str:
    """What `text` begins with that consists of `letters`."""
    return text[: len(text) - len(text.lstrip(letters))]


DURATION = Duration()
PATIENCE = Patience()
SIZE = Size()
SIGNAL = Signal()


def _choose_format(session: Session, value: str) -> None:
    session.format = value


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` after the verb too, where it is looked for first."""
    return grammar.option(
        "--format", type=grammar.Choice(FORMATS), apply=_choose_format, help="A table, or JSON."
    )(command)


def _force(session: Session, _value: bool) -> None:
    session.forced = True


def force_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--force, for what is refused in a namespace of another program's."""
    return grammar.option(
        "--force", is_flag=True, apply=_force, help="What is Docker's or Kubernetes's too."
    )(command)


def _choose_detach_keys(session: Session, value: str) -> None:
    from lighter.ctl.stdio import parse_keys

    try:
        session.detach_keys = parse_keys(value)
    except ValueError as err:
        raise grammar.UsageError(f"--detach-keys {value!r}: {str(err)!r} is no key") from err


def detach_keys_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--detach-keys, for what may be left with its terminal."""
    return grammar.option(
        "--detach-keys",
        apply=_choose_detach_keys,
        metavar="KEYS",
        help='What leaves a terminal; "": nothing.  [default: ctrl-p,ctrl-q]',
    )(command)


def fifo_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--fifo-dir, for processes that are started and left."""
    return grammar.option(
        "--fifo-dir",
        type=grammar.PATH,
        default="",
        help="With -d: make FIFOs for the streams in a new directory there.",
    )(command)


def key_values(words: Sequence[str], what: str, *, bare: bool = False) -> dict[str, str]:
    """`key=value` words as a map. `bare`: a word without "=" is a key with the value ""."""
    labels: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not key or not (sign or bare):
            raise grammar.UsageError(f"{what} {word!r}: expected key=value")
        labels[key] = value
    return labels


def absolute(path: str) -> str:
    """`path` seen from ctl's own working directory."""
    import os  # no short command has a path

    return os.path.abspath(path)


def read_text(path: str, what: str) -> str:
    """The text of a file that an option names. Raises InvalidArgument."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is not UTF-8 text"
        raise InvalidArgument(f"read {what} {path}: {reason}") from err


def _print_version(_session: Session, _value: bool) -> None:
    from lighter.proto.version import VERSION

    print(f"ctl version {VERSION}")
    raise grammar.Done


@grammar.group("ctl")
@grammar.option(
    "--address",
    "-a",
    envvar="LIGHTER_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    show_envvar=True,
    help="The manager's socket.",
)
@grammar.option(
    "--namespace",
    "-n",
    envvar=["LIGHTER_NAMESPACE", "CONTAINERD_NAMESPACE"],
    help="Namespace of the containers and images.  [default: default]",
    show_envvar=True,
)
@grammar.option("--timeout", type=DURATION, default="0s", help="Limit for the whole command.")
@grammar.option(
    "--connect-timeout",
    type=DURATION,
    default="5s",
    show_default=True,
    help="How long to wait for a manager that is away.",
)
@grammar.option("--debug", is_flag=True, help="Show calls, their times, and where an error arose.")
@grammar.option(
    "--format", type=grammar.Choice(FORMATS), default="table", show_default=True, help="Of output."
)
@grammar.option(
    "--version",
    "-v",
    is_flag=True,
    is_eager=True,
    apply=_print_version,
    help="Print ctl's version.",
)
def ctl(
    session: Session,
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
    session.address = address
    session.namespace = namespace or "default"
    session.namespace_given = bool(namespace)
    session.timeout_s = timeout
    session.connect_timeout_s = connect_timeout
    session.debug = debug
    session.format = format


for _names, _module, _attribute, _help in _COMMANDS:
    ctl.later(_names, _module, _attribute, _help)
