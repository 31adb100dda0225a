"""Reading an image's configuration document (OCI image-spec, config.md). Bytes in, facts out.

The document comes from a registry: it is content and never control. Wrong types are errors and
not guesses, so that two readers cannot see two images; labels that would steer the manager are
dropped; annotations are not read at all.
"""

import json
import re
from typing import Any

from lighter.daemon import jsonbounds
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument
from lighter.proto.names import MAX_LABEL_BYTES

MAX_CONFIG_BYTES = 4 << 20
MAX_LABELS_BYTES = 1 << 20  # that each of its containers has a copy of
MAX_LAYERS = 4096

# Labels with a meaning for the manager or one of its front ends: only a caller sets them.
RESERVED_LABELS = ("containerd.io/", "io.containerd.", "io.cri-containerd", "io.lighter")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


def read_image_config(document: bytes) -> tuple[ImageConfig, tuple[str, ...]]:
    """Return what a container is made from, and a warning for each label and Env entry that was
    dropped. Raises InvalidArgument naming the field.
    """
    root = _load(document)
    config = _field(root, "config", dict) or {}
    warnings: list[str] = []
    parsed = ImageConfig(
        entrypoint=_texts(config, "Entrypoint"),
        cmd=_texts(config, "Cmd"),
        env=_environment(_texts(config, "Env"), warnings),
        user=_text(config, "User"),
        working_dir=_text(config, "WorkingDir"),
        stop_signal=_text(config, "StopSignal"),
        labels=_labels(config, warnings),
        volumes=_volumes(config),
        health=_health(config),
        shell=_texts(config, "Shell"),
        diff_ids=_diff_ids(root),
        architecture=_text(root, "architecture"),
        os=_text(root, "os") or "linux",
    )
    return parsed, tuple(warnings)


def _load(document: bytes) -> dict[str, Any]:
    if len(document) > MAX_CONFIG_BYTES:
        raise InvalidArgument(
            f"read image config: {len(document)} bytes, at most {MAX_CONFIG_BYTES}"
        )
    try:
        jsonbounds.check_values(document)
        root = json.loads(
            document.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=jsonbounds.integer,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as err:  # also UnicodeDecodeError, and too much of it
        raise InvalidArgument(f"read image config: not valid JSON: {str(err)[:200]}") from err
    if not isinstance(root, dict):
        raise InvalidArgument("read image config: the document is not an object")
    return root


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key: parsers differ in which of the values they keep."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _field(holder: dict[str, Any], key: str, kind: type) -> Any:
    """Return holder[key], or None when it is absent or null, as Go's encoder writes empty ones."""
    value = holder.get(key)
    if value is not None and not isinstance(value, kind):
        raise InvalidArgument(
            f"read image config: {key} is a {type(value).__name__}, not a {kind.__name__}"
        )
    return value


def _check_text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"read image config: {key} holds a {type(value).__name__}, not text")
    if "\0" in value:
        raise InvalidArgument(f"read image config: {key} holds a NUL byte")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as err:
            raise InvalidArgument(f"read image config: {key} holds half a character") from err
    return value


def _text(holder: dict[str, Any], key: str) -> str:
    return _check_text(_field(holder, key, str) or "", key)


def _texts(holder: dict[str, Any], key: str) -> tuple[str, ...]:
    return tuple(_check_text(item, key) for item in _field(holder, key, list) or ())


def _environment(entries: tuple[str, ...], warnings: list[str]) -> tuple[str, ...]:
    """Keep "NAME=value". A bare name means "the value here" to some tools: it is dropped."""
    kept = []
    for entry in entries:
        if entry.partition("=")[0] and "=" in entry:
            kept.append(entry)
        else:
            warnings.append(f"drop Env entry {entry[:40]!r} of the image: it is not NAME=value")
    return tuple(kept)


def _labels(config: dict[str, Any], warnings: list[str]) -> dict[str, str]:
    kept = {}
    size_bytes = too_many = 0
    for key, value in (_field(config, "Labels", dict) or {}).items():
        _check_text(key, "Labels")
        text = _check_text(value, "Labels")
        if key.startswith(RESERVED_LABELS):
            warnings.append(f"drop label {key[:80]!r} of the image: only a caller may set it")
            continue
        label_bytes = len(key.encode()) + len(text.encode())
        if label_bytes > MAX_LABEL_BYTES:
            # No container can have it; of development containers' images it may be that long.
            over = f"it has more than {MAX_LABEL_BYTES} bytes"
            warnings.append(f"drop label {key[:80]!r} of the image: {over}")
            continue
        size_bytes += label_bytes
        if size_bytes > MAX_LABELS_BYTES:
            too_many += 1
        else:
            kept[key] = text
    if too_many:
        over = f"over {MAX_LABELS_BYTES} bytes in all"
        warnings.append(f"drop {too_many} labels of the image: {over}")
    return kept


def _volumes(config: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_check_text(path, "Volumes") for path in _field(config, "Volumes", dict) or {})


_HEALTH_TIMES = {
    "Interval": "interval_s",
    "Timeout": "timeout_s",
    "StartPeriod": "start_period_s",
    "StartInterval": "start_interval_s",
}


def _health(config: dict[str, Any]) -> dict[str, Any]:
    """Docker's HEALTHCHECK, as daemon/health/check.py names its fields; {} for none."""
    given = _field(config, "Healthcheck", dict)
    if not given:
        return {}
    found: dict[str, Any] = {"test": list(_texts(given, "Test"))}
    for key, name in _HEALTH_TIMES.items():
        found[name] = _whole(given, key) / 1e9
    found["retries"] = _whole(given, "Retries")
    return found


def _whole(holder: dict[str, Any], key: str) -> int:
    value = _field(holder, key, int) or 0
    if isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise InvalidArgument(f"read image config: Healthcheck: {key} is no such number")
    return int(value)


def _diff_ids(root: dict[str, Any]) -> tuple[str, ...]:
    digests = _texts(_field(root, "rootfs", dict) or {}, "diff_ids")
    if len(digests) > MAX_LAYERS:
        raise InvalidArgument(f"read image config: {len(digests)} layers, at most {MAX_LAYERS}")
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise InvalidArgument(f"read image config: diff_ids: {digest[:80]!r} is not a digest")
    return digests
