"""`ctl upgrade`: whether another version could take over, asked before anything is touched."""

import os
import subprocess
from collections.abc import Sequence

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.output import print_json
from lighter.proto.errors import InvalidArgument, Unavailable
from lighter.proto.release import OWN, Release, checked, release_at

RPM_S = 60.0
# What the packages provide, see packaging/rpm/lighter.spec.
_PROTOCOL, _SCHEMA, _NEWEST = "lighter(protocol)", "lighter(schema)", "lighter(schema-newest)"
_QUERY = r"%{NAME}\n%{VERSION}\n[%{PROVIDENAME} %{PROVIDEVERSION}\n]"


@grammar.group("upgrade")
def upgrade(_session: Session) -> None:
    """Look ahead to another version.

    \b
      ctl upgrade check lighter-0.3.0-1.x86_64.rpm
      ctl upgrade check /usr/lib64/lighter/0.3.0
    """


@upgrade.verb("check")
@format_option
@grammar.argument("path", metavar="[RPM|DIR]", required=False)
def check(session: Session, path: str | None) -> int:
    """tell whether a version can adopt every running shim and open the database

    RPM is a package of that version, DIR a directory of packages or an installed version's own.
    Without one, the version that this ctl belongs to. Exit status 1 when it cannot.

    \b
      ctl upgrade check dist/lighter-core-0.3.0-0.3.0-1.x86_64.rpm
    """
    release = OWN if path is None else _release(path)
    found = session.call("system.upgrade_check", **release._asdict())
    if session.json:
        print_json(found)
    else:
        verdict = "can" if found["can_take_over"] else "cannot"
        print(f"version {found['version']} {verdict} take over from {found['running']}")
        refused = len(found["refused"])
        print(f"running shims: {found['shims']}, {found['shims'] - refused} can be adopted")
        for line in (*found["problems"], *found["warnings"]):
            print(f"  {line}")
    return 0 if found["can_take_over"] else 1


def _release(path: str) -> Release:
    if not os.path.isdir(path):
        return _of_rpms([path])
    if os.path.isdir(os.path.join(path, "site")):
        return release_at(os.path.abspath(path))
    names = sorted(name for name in os.listdir(path) if name.endswith(".rpm"))
    rpms = [os.path.join(path, name) for name in names if name.startswith("lighter-")]
    if not rpms:
        raise InvalidArgument(f"read version at {path}: it has neither site/ nor a lighter rpm")
    return _of_rpms(rpms)


def _of_rpms(paths: Sequence[str]) -> Release:
    """The one version that packages say they are of. Raises InvalidArgument."""
    found = {release: path for path in paths if (release := _of_rpm(path)) is not None}
    if not found:
        raise InvalidArgument(
            f"read version of {paths[0]}: it does not say what it can take over; give the package "
            "lighter or lighter-core of version 0.2.0 or later"
        )
    if len(found) > 1:
        several = ", ".join(sorted(release.version for release in found))
        raise InvalidArgument(f"read version of {paths[0]}: several are here: {several}; name one")
    return next(iter(found))


def _of_rpm(path: str) -> Release | None:
    """The release that a package holds; None for one that does not say, such as the sources."""
    if not os.path.isfile(path):
        raise InvalidArgument(f"read package {path}: there is no such file")
    argv = ["rpm", "-qp", "--nosignature", "--queryformat", _QUERY, os.path.abspath(path)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RPM_S, check=False)
    except FileNotFoundError as err:
        raise Unavailable(f"read package {path}: rpm is not installed") from err
    except subprocess.TimeoutExpired as err:
        raise Unavailable(f"read package {path}: rpm does not answer in {RPM_S:g} s") from err
    if done.returncode:
        raise InvalidArgument(f"read package {path}: it is no rpm ({_last_line(done.stderr)})")
    _name, version, *provided = done.stdout.splitlines()
    offers = [tuple(line.split(" ", 1)) for line in provided if " " in line]
    numbers = {
        name: [int(number) for offer, number in offers if offer == name and number.isdecimal()]
        for name in (_PROTOCOL, _SCHEMA, _NEWEST)
    }
    if not all(numbers.values()):
        return None
    protocols = sorted(numbers[_PROTOCOL])
    return checked(version, protocols, numbers[_SCHEMA][0], numbers[_NEWEST][0], path)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
