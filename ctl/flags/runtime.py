"""Flags of the program that runs the container, and of its place among the cgroups."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import read_text
from lighter.proto.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Of containerd's table for runc's options, and what the request calls them.
_CONFIG_KEYS = {
    "BinaryName": ("binary_name", str),
    "Root": ("root", str),
    "SystemdCgroup": ("systemd_cgroup", bool),
    "NoPivotRoot": ("no_pivot_root", bool),
    "NoNewKeyring": ("no_new_keyring", bool),
    "IoUid": ("io_uid", int),
    "IoGid": ("io_gid", int),
}

OPTIONS = (
    grammar.option("--runtime", help="runc, crun, or a program's path.  [default: the manager's]"),
    grammar.option(
        "--runtime-config-path",
        metavar="FILE",
        help="TOML with runc's options as containerd has them: BinaryName, Root, SystemdCgroup, …",
    ),
    grammar.option("--runc-binary", default="", help="The runtime's program."),
    grammar.option("--runc-root", default="", help="Where the runtime keeps its state."),
    grammar.option("--runc-systemd-cgroup", is_flag=True, help="Let systemd make the cgroup."),
    grammar.option("--no-pivot", is_flag=True, help="No pivot_root, for a root on a ramdisk."),
    grammar.option("--cgroup", help="The cgroup's path; with systemd slice:prefix:name."),
    grammar.option("--cgroup-parent", default="", help="The cgroup (slice) that it is made in."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    return {
        "runtime": flags["runtime"] or "",
        "runtime_options": runtime_options(flags),
        "cgroup": flags["cgroup"],
        "cgroup_parent": flags["cgroup_parent"],
    }


def runtime_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as ever; a flag stands above the file. Raises InvalidArgument."""
    path = flags["runtime_config_path"]
    options = options_file(path) if path else {}
    given = {
        "binary_name": flags["runc_binary"],
        "root": flags["runc_root"],
        "systemd_cgroup": flags["runc_systemd_cgroup"],
        "no_pivot_root": flags["no_pivot"],
    }
    return {**options, **{name: value for name, value in given.items() if value}}


def options_file(path: str) -> dict[str, Any]:
    """The options that a runtime's configuration file has."""
    import tomllib

    try:
        table = tomllib.loads(read_text(path, "runtime configuration"))
    except (ValueError, RecursionError) as err:
        raise InvalidArgument(f"read runtime configuration {path}: {err}") from err
    options = {}
    for key, value in table.items():
        name, kind = _CONFIG_KEYS.get(key, ("", object))
        if not name or type(value) is not kind:
            known = ", ".join(_CONFIG_KEYS)
            raise InvalidArgument(
                f"read runtime configuration {path}: {key} = {value!r}: there are {known}"
            )
        options[name] = value
    return options
