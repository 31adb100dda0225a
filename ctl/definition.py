"""The options that define a container, for `run` and `containers create`, and the request of them.

Flags follow ctr, with docker's names beside them where the two agree.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from lighter.ctl.cli import SIZE, absolute, key_values, read_text
from lighter.proto.errors import InvalidArgument

LOG_DRIVERS = ("file", "none")
LOG_MAX_SIZE = 10 * 1024 * 1024
LOG_MAX_FILE = 5

_MOUNT_KEYS = {
    "type": "type",
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "target": "destination",
    "options": "options",
}

_OPTIONS = (
    click.option("--tty", "-t", is_flag=True, help="Give the container a terminal."),
    click.option("--env", "-e", multiple=True, help="KEY=value; KEY alone takes ctl's own."),
    click.option("--env-file", multiple=True, type=click.Path(), help="File of KEY=value lines."),
    click.option("--cwd", "--workdir", "-w", help="Working directory."),
    click.option("--user", "-u", help="User or uid[:group or gid]."),
    click.option("--entrypoint", help='Program instead of the image\'s; "": none.'),
    click.option("--hostname", help="Host name in the container."),
    click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the container."),
    click.option(
        "--mount",
        multiple=True,
        help="type=bind,src=/tmp,dst=/hostdir,options=rbind:rw",
    ),
    click.option("--net-host", is_flag=True, help="Use the host's network."),
    click.option("--read-only", is_flag=True, help="Root filesystem cannot be written."),
    click.option("--privileged", is_flag=True, help="All capabilities and devices."),
    click.option("--cap-add", multiple=True, help="Add a capability, CAP_… or ALL."),
    click.option("--cap-drop", multiple=True, help="Drop a capability, CAP_… or ALL."),
    click.option("--seccomp", is_flag=True, help="Use the default profile (which is on anyway)."),
    click.option("--seccomp-profile", help="A profile's file, or 'unconfined' for none."),
    click.option("--allow-new-privs", is_flag=True, help="Let setuid programs gain privileges."),
    click.option("--with-ns", multiple=True, help="Join: pid:/proc/PID/ns/pid, net:, ipc:, …"),
    click.option(
        "--snapshotter",
        envvar=["LIGHTER_SNAPSHOTTER", "CONTAINERD_SNAPSHOTTER"],
        help="Keeper of the root filesystem.",
    ),
    click.option("--runtime", help="Name of the runtime.  [default: the manager's]"),
    click.option("--stop-signal", help="What `stop` sends.  [default: the image's]"),
    click.option("--log-driver", type=click.Choice(LOG_DRIVERS), default="file", help="Log kept?"),
    click.option("--log-max-size", type=SIZE, default="10m", help="Per file; 0: no limit."),
    click.option("--log-max-file", type=click.IntRange(0), default=5, help="Files; 0: no limit."),
)


def definition_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of `definition`, in the order that help shows."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def definition(
    container_id: str | None,
    image: str,
    command: tuple[str, ...],
    flags: Mapping[str, Any],
    *,
    auto_remove: bool = False,
    stdin_open: bool = True,
) -> dict[str, Any]:
    """The body of containers.create; `flags` are the values of `definition_options`."""
    return {
        "id": container_id,
        "image": image,
        "args": list(command),
        "entrypoint": entrypoint(flags["entrypoint"]),
        "env": environment(flags["env"], flags["env_file"]),
        "cwd": flags["cwd"] or "",
        "user": flags["user"] or "",
        "terminal": flags["tty"],
        "mounts": [mount(text) for text in flags["mount"]],
        "net_host": flags["net_host"],
        "read_only": flags["read_only"],
        "hostname": flags["hostname"] or "",
        "labels": key_values(flags["label"], "label", bare=True),
        "snapshotter": flags["snapshotter"] or "",
        "privileged": flags["privileged"],
        "cap_add": list(flags["cap_add"]),
        "cap_drop": list(flags["cap_drop"]),
        "seccomp": seccomp(flags["seccomp_profile"]),
        "allow_new_privs": flags["allow_new_privs"],
        "runtime": flags["runtime"] or "",
        "with_ns": joined_namespaces(flags["with_ns"]),
        "auto_remove": auto_remove,
        "stdin_open": stdin_open,
        "stop_signal": flags["stop_signal"] or "",
        "log": {
            "driver": flags["log_driver"],
            "max_size": flags["log_max_size"],
            "max_file": flags["log_max_file"],
        },
    }


def entrypoint(program: str | None) -> list[str] | None:
    """What takes the place of the image's entrypoint: null leaves it, an empty list drops it."""
    if program is None:
        return None
    return [program] if program else []


def environment(words: tuple[str, ...], files: tuple[str, ...]) -> list[str]:
    """`KEY=value` for each word and each line of the files; the words win, being last."""
    lines = [line for path in files for line in read_text(path, "env file").splitlines()]
    given = [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    env = []
    for item in (*given, *words):
        key, sign, _value = item.partition("=")
        if not key:
            raise click.UsageError(f"--env {item!r}: the name is empty")
        if sign:
            env.append(item)
        elif key in os.environ:
            env.append(f"{key}={os.environ[key]}")
    return env


def mount(text: str) -> dict[str, Any]:
    """One --mount as {type, source, destination, options}. Raises click.UsageError.

    Fields are separated by commas, a field with a comma is quoted as in CSV; options are separated
    by colons. A relative source of a bind mount is seen from ctl's working directory.
    """
    import csv

    found: dict[str, Any] = {"type": "", "source": "", "destination": "", "options": []}
    for field in next(csv.reader([text]), []):
        key, sign, value = field.partition("=")
        if key in ("ro", "readonly") and value in ("", "true"):
            found["options"].append("ro")
            continue
        name = _MOUNT_KEYS.get(key)
        if name is None or not sign:
            raise click.UsageError(f"--mount {text!r}: {field!r} is not known here")
        if name == "options":
            found["options"] += [option for option in value.split(":") if option]
        else:
            found[name] = value
    if not found["destination"]:
        raise click.UsageError(f"--mount {text!r}: dst is missing")
    found["type"] = found["type"] or "bind"
    if found["type"] == "bind":
        if not found["source"]:
            raise click.UsageError(f"--mount {text!r}: src is missing")
        found["source"] = absolute(found["source"])
        if not {"bind", "rbind"} & set(found["options"]):
            found["options"].append("rbind")
    return found


def seccomp(profile: str | None) -> str:
    """ "default", "unconfined", or the JSON text of the profile's file."""
    if profile in (None, "", "default"):
        return "default"
    if profile == "unconfined":
        return profile
    text = read_text(str(profile), "seccomp profile")
    if not text.lstrip().startswith("{"):
        raise InvalidArgument(f"read seccomp profile {profile}: it is no JSON object")
    return text


def joined_namespaces(words: tuple[str, ...]) -> dict[str, str]:
    """`kind:path` words as a map."""
    joined = {}
    for word in words:
        kind, sign, path = word.partition(":")
        if not (kind and sign and path):
            raise click.UsageError(f"--with-ns {word!r}: expected kind:path")
        joined[kind] = path
    return joined
