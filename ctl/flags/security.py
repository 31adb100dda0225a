"""Flags of what the container's processes may do."""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import read_text
from lighter.proto.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OPTIONS = (
    grammar.option("--privileged", is_flag=True, help="All capabilities and devices."),
    grammar.option(
        "--privileged-without-host-devices",
        is_flag=True,
        help="With --privileged: all capabilities, and the devices of any other container.",
    ),
    grammar.option("--cap-add", multiple=True, help="Add a capability, CAP_… or ALL."),
    grammar.option("--cap-drop", multiple=True, help="Drop a capability, CAP_… or ALL."),
    grammar.option("--seccomp", is_flag=True, help="Use the default profile (which is on anyway)."),
    grammar.option("--seccomp-profile", help="A profile's file, or 'unconfined' for none."),
    grammar.option("--apparmor-profile", default="", help="A profile that is loaded on this host."),
    grammar.option("--apparmor-default-profile", default="", help="The same; ctr's name of it."),
    grammar.option(
        "--security-opt",
        multiple=True,
        metavar="NAME=VALUE",
        help="seccomp=, apparmor=, no-new-privileges, label=, systempaths=unconfined.",
    ),
    grammar.option("--allow-new-privs", is_flag=True, help="Let setuid programs gain privileges."),
)


def fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Their part of the body of containers.create."""
    if flags["privileged_without_host_devices"] and not flags["privileged"]:
        raise grammar.UsageError("--privileged-without-host-devices: --privileged is expected too")
    options = security_options(flags["security_opt"])
    profiles = {
        *(flags["apparmor_profile"], flags["apparmor_default_profile"]),
        options.get("apparmor", ""),
    } - {""}
    if len(profiles) > 1:
        raise grammar.UsageError(f"AppArmor: one profile is expected, not {len(profiles)}")
    profile = flags["seccomp_profile"] or options.get("seccomp")
    allowed = flags["allow_new_privs"] or options.get("no-new-privileges") == "false"
    return {
        "privileged": flags["privileged"],
        "without_host_devices": flags["privileged_without_host_devices"],
        "cap_add": list(flags["cap_add"]),
        "cap_drop": list(flags["cap_drop"]),
        "seccomp": seccomp(profile),
        "apparmor": next(iter(profiles), ""),
        "selinux": labels(flags["security_opt"]),
        "unmask": options.get("systempaths") == "unconfined",
        "allow_new_privs": allowed,
    }


_VALUES = {
    "no-new-privileges": ("true", "false"),
    "systempaths": ("unconfined",),
}
_LABEL_PARTS = ("user", "role", "type", "level", "filetype")


def security_options(words: tuple[str, ...]) -> dict[str, str]:
    """docker's --security-opt as a map; a colon stands for the sign too, as docker reads it."""
    options = {}
    for word in words:
        name, sign, value = word.partition("=" if "=" in word else ":")
        if name == "no-new-privileges" and not sign:
            value = "true"
        if name == "label":
            continue
        known = name in ("seccomp", "apparmor") or name in _VALUES
        if not known or not value or value not in _VALUES.get(name, (value,)):
            raise grammar.UsageError(f"--security-opt {word!r} is not known here")
        options[name] = value
    return options


def labels(words: tuple[str, ...]) -> dict[str, str]:
    """docker's label=disable, label=type:NAME, … as a map."""
    found = {}
    for word in words:
        name, _, value = word.partition("=" if "=" in word else ":")
        if name != "label":
            continue
        part, sign, text = value.partition(":")
        if value == "disable":
            found["disable"] = "true"
        elif part in _LABEL_PARTS and sign and text:
            found[part] = text
        else:
            raise grammar.UsageError(
                f"--security-opt {word!r}: expected label=disable or label="
                f"{'|'.join(_LABEL_PARTS)}:VALUE"
            )
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
