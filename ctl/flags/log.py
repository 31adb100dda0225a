"""Flags of what is kept of the container's output."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Docker's words beside ours. Its `local` and `json-file` keep output in files that `logs` reads, as
# `file` does; their formats are not promised to anybody.
_DRIVERS = {"file": "file", "json-file": "file", "local": "file", "none": "none"}
_SENDING = ("journald", "syslog")
_DRIVERS |= {name: name for name in _SENDING}
# Of drivers that send: docker's option and our field.
_SENT = {
    "tag": "tag",
    "syslog-address": "address",
    "syslog-format": "format",
    "syslog-facility": "facility",
}


class LogDriver(grammar.Kind):
    """A driver by docker's name or ours; converts to ours."""

    name = "driver"

    def convert(self, text: str) -> str:
        if text not in _DRIVERS:
            raise grammar.BadValue(
                f"there is no driver {text!r}, only {', '.join(_DRIVERS)}; "
                "--log-uri binary:///PROGRAM hands the output to a program of yours"
            )
        return _DRIVERS[text]


OPTIONS = (
    grammar.option(
        "--log-driver",
        type=LogDriver(),
        default="file",
        show_default=True,
        help="file, none, journald or syslog. json-file and local mean file.",
    ),
    grammar.option(
        "--log-opt",
        "log_opt",
        multiple=True,
        metavar="KEY=VALUE",
        help="max-size=10m, max-file=5: the following two in docker's words; tag, syslog-address, "
        "syslog-format, syslog-facility for drivers that send.",
    ),
    grammar.option(
        "--log-max-size", type=SIZE, help="Per file; 0: no limit.  [default: the manager's]"
    ),
    grammar.option(
        "--log-max-file",
        type=grammar.Integer(0),
        help="Files; 0: no limit.  [default: the manager's]",
    ),
    grammar.option(
        "--log-uri",
        metavar="URI",
        help="In place of a log: file:///PATH, or binary:///PROGRAM?KEY=VALUE as containerd's.",
    ),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create. Raises grammar.UsageError."""
    sizes = {"max_size": flags["log_max_size"], "max_file": flags["log_max_file"]}
    return {
        "log": {
            "driver": flags["log_driver"],
            **{name: size for name, size in sizes.items() if size is not None},
            "uri": flags["log_uri"] or "",
            **_docker_options(flags["log_opt"], flags["log_driver"]),
        }
    }


def _docker_options(words: tuple[str, ...], driver: str) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if key == "max-size" and sign:
            # -1 is docker's "no limit".
            found["max_size"] = 0 if value == "-1" else int(SIZE.convert(value))
        elif key == "max-file" and value.isascii() and value.isdigit() and int(value):
            found["max_file"] = int(value)
        elif driver in _SENDING and key in _SENT and value:
            found[_SENT[key]] = value
        elif driver in _SENDING and (key, value) == ("mode", "non-blocking"):
            pass  # they never block
        elif (key, value) not in (("mode", "blocking"), ("compress", "false")):
            sent = ", ".join(f"{name}=…" for name in _SENT) if driver in _SENDING else ""
            raise grammar.UsageError(
                f"--log-opt {word!r}: it cannot be had; there are max-size=SIZE, max-file=NUMBER, "
                f"{sent + ', ' if sent else ''}mode=blocking and compress=false"
            )
    return found
