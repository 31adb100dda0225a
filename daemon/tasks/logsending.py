"""Docker's log drivers that send: `journald` and `syslog`, beside the file that `logs` reads.

What is recorded is what was asked for; what the shim is told (`order_of`) is made for each task.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from lighter.daemon.types import Container
from lighter.proto.errors import FailedPrecondition, InvalidArgument

DRIVERS = ("journald", "syslog")
JOURNAL = "/run/systemd/journal/socket"
_DEV_LOG = "/dev/log"
_PORT = 514  # of syslog over UDP, RFC 5426; docker takes it over TCP too
FORMATS = ("rfc5424", "rfc3164")

# syslog(3)
_FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron"),
    *("authpriv", "ftp"),
    *("",) * 4,
    *(f"local{number}" for number in range(8)),
)
_TAG = re.compile(r"[!-~]{1,48}", re.ASCII)  # RFC 5424, APP-NAME
_TEMPLATE = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")


def read_sending(
    driver: str, given: Mapping[str, Any], *, journal: str = JOURNAL
) -> dict[str, Any]:
    """What a request asks for, as it is recorded. Raises InvalidArgument, FailedPrecondition."""
    texts = {}
    for name in ("tag", "address", "format", "facility"):
        texts[name] = given.get(name) or ""
        if not isinstance(texts[name], str):
            raise InvalidArgument(f"choose log driver {driver}: {name} is no text")
    _tag(texts["tag"], "id", "image")
    if driver == "journald":
        if texts["address"] or texts["format"] or texts["facility"]:
            raise InvalidArgument("choose log driver journald: only a tag can be had")
        if not os.path.exists(journal):
            raise FailedPrecondition(f"choose log driver journald: this host has none ({journal})")
    else:
        _target(texts["address"])
        if texts["format"] not in ("", *FORMATS):
            raise InvalidArgument(
                f"choose log driver syslog: format {texts['format'][:40]!r} is none of "
                f"{' and '.join(FORMATS)}"
            )
        _facility(texts["facility"])
    return {"to": driver, **{name: text for name, text in texts.items() if text}}


def order_of(container: Container, sending: Mapping[str, Any]) -> dict[str, Any]:
    """The part `send` of a shim's order (proto/shim_api)."""
    tag = _tag(str(sending.get("tag") or ""), container.id, container.image)
    if sending["to"] == "journald":
        return {
            "name": "journald",
            "format": "journald",
            "target": JOURNAL,
            "tag": tag,
            "facility": 0,
            "stream": False,
            "fields": {
                "CONTAINER_ID": container.id[:12],
                "CONTAINER_ID_FULL": container.id,
                "CONTAINER_NAME": container.id,
                "CONTAINER_NAMESPACE": container.namespace,
                "CONTAINER_TAG": tag,
                "SYSLOG_IDENTIFIER": tag,
                "IMAGE_NAME": container.image,
            },
        }
    address = str(sending.get("address") or "")
    target = _target(address)
    default = FORMATS[1] if isinstance(target, str) else FORMATS[0]
    return {
        "name": "syslog",
        "format": sending.get("format") or default,
        "target": target,
        "tag": tag,
        "facility": _facility(str(sending.get("facility") or "")),
        "stream": urlsplit(address).scheme == "tcp",
        "fields": {},
    }


def _tag(text: str, id_: str, image: str) -> str:
    """docker's template with what it may name. Raises InvalidArgument."""
    known = {"ID": id_[:12], "FullID": id_, "Name": id_, "ImageName": image}

    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise InvalidArgument(f"choose log tag {text[:80]!r}: there are {', '.join(known)}")
        return known[match[1]]

    made = _TEMPLATE.sub(value, text) if text else id_
    if "{{" in made or not _TAG.fullmatch(made[:48]):
        raise InvalidArgument(f"choose log tag {text[:80]!r}: printable ASCII without spaces")
    return made[:48]


def _target(address: str) -> str | list[Any]:
    """A socket's path, or [address, port]. Raises InvalidArgument."""
    if not address:
        return _DEV_LOG
    parts = urlsplit(address)
    if parts.scheme in ("unixgram", "unix") and parts.path.startswith("/") and not parts.netloc:
        return parts.path
    if parts.scheme in ("udp", "tcp") and parts.hostname:
        try:
            return [str(ipaddress.ip_address(parts.hostname)), parts.port or _PORT]
        except ValueError:
            pass
    raise InvalidArgument(
        f"choose syslog address {address[:80]!r}: expected udp://ADDRESS[:PORT] or "
        "tcp://ADDRESS[:PORT] with a number for the address, or unixgram:///PATH"
    )


def _facility(text: str) -> int:
    if not text:
        return _FACILITIES.index("daemon")
    if text in _FACILITIES:
        return _FACILITIES.index(text)
    if text.isascii() and text.isdigit() and len(text) < 9 and int(text) < len(_FACILITIES):
        return int(text)
    raise InvalidArgument(f"choose syslog facility {text[:40]!r}: there is none of this name")
