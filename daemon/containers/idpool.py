"""Ids of the host for containers that ask for any (`--userns=auto`): no two of them share one.

Who has which stands in the record of each container (options `userns`), so ids are free again
when that is gone. Where they come from is the configuration, else what /etc/subuid and /etc/subgid
give to the user "containers", which is where podman's come from. The lowest free ones are taken:
the image's files, given to those ids for one container, serve the next that has them.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lighter.daemon.files import read_capped
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.oci.idmaps import MAX_ID, IdMaps, IdRange, from_spec
from lighter.daemon.oci.idspan import Span, parse_span
from lighter.proto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable

SIZE = 65536  # as many as a system has: 0 to 65535
OPTION = "userns"
_KEYS = ("uid", "gid", "size")
_OWNER = "containers"
_FILES = ("/etc/subuid", "/etc/subgid")
_MAX_FILE_BYTES = 4 << 20


class IdPool:
    """`configured` "" means the files' (`files`: subuid's and subgid's)."""

    def __init__(
        self, store: ContainerStore, configured: str, files: tuple[str, str] = _FILES
    ) -> None:
        self._store = store
        self._configured = configured
        self._files = files
        self._claimed: list[tuple[Span, Span]] = []

    @contextlib.contextmanager
    def claim(self, size: int) -> Iterator[tuple[IdMaps, dict[str, Any]]]:
        """A free mapping and what the record says of it; nobody else gets it meanwhile.

        Raises InvalidArgument, FailedPrecondition where no ids are set aside, ResourceExhausted.
        """
        if not 1 <= size <= MAX_ID:
            raise InvalidArgument(f"map ids: {size} is no number of ids")
        uids, gids = self._sources()
        taken = [*self._recorded(), *self._claimed]
        found = (
            _free(uids, [one for one, _ in taken], size, "user"),
            _free(gids, [one for _, one in taken], size, "group"),
        )
        self._claimed.append(found)
        try:
            maps = IdMaps(*((IdRange(0, one.first, size),) for one in found))
            yield maps, {OPTION: {"uid": found[0].first, "gid": found[1].first, "size": size}}
        finally:
            self._claimed.remove(found)

    @contextlib.contextmanager
    def keep(self, mapping: Any) -> Iterator[None]:
        """Reserve ids that a record names until another record has them too.

        Raises InvalidArgument for something that is no such mapping, FailedPrecondition when
        somebody else has any of the ids.
        """
        numbers = [mapping.get(name) if isinstance(mapping, Mapping) else None for name in _KEYS]
        if not all(type(number) is int and 0 < number <= MAX_ID for number in numbers):
            raise InvalidArgument("map ids: the record of them is none")
        uid, gid, size = (int(number) for number in numbers if number)
        wanted = Span(uid, size), Span(gid, size)
        for theirs in (*self._recorded(), *self._claimed):
            for kind, own, other in zip(("user", "group"), wanted, theirs, strict=True):
                if own.first < other.end and other.first < own.end:
                    raise FailedPrecondition(
                        f"map ids: {kind} ids {own.first} and up are another container's by now"
                    )
        self._claimed.append(wanted)
        try:
            yield
        finally:
            self._claimed.remove(wanted)

    def _recorded(self) -> Iterator[tuple[Span, Span]]:
        for value in self._store.option(OPTION):
            yield Span(value["uid"], value["size"]), Span(value["gid"], value["size"])
        for spec in self._store.specs_beside_damaged_options():
            with contextlib.suppress(InvalidArgument, AttributeError, TypeError):
                maps = from_spec(spec)
                for uids, gids in itertools.product(maps.uids, maps.gids):
                    yield Span(uids.host, uids.size), Span(gids.host, gids.size)

    def _sources(self) -> tuple[list[Span], list[Span]]:
        if self._configured:
            span = parse_span(self._configured)
            return [span], [span]
        found = [_subordinate(path) for path in self._files]
        for path, spans in zip(self._files, found, strict=True):
            if not spans:
                raise FailedPrecondition(
                    f"map ids: no ids are set aside for containers; a line "
                    f"{_OWNER}:2147483648:2147418112 in {path}, or userns.ids in the "
                    "configuration, does it"
                )
        return found[0], found[1]


def _subordinate(path: str) -> list[Span]:
    """The ranges of subuid(5); as in shadow, lines that are malformed are skipped. Raises
    Unavailable.
    """
    try:
        data = read_capped(path, _MAX_FILE_BYTES)
    except OSError as err:
        raise Unavailable(f"map ids: read {path}: {err.strerror}") from err
    spans = []
    for line in (data or b"").decode(errors="replace").splitlines():
        owner, _, rest = line.strip().partition(":")
        if owner == _OWNER:
            with contextlib.suppress(InvalidArgument):
                spans.append(parse_span(rest))
    return spans


def _free(sources: Iterable[Span], taken: Iterable[Span], size: int, what: str) -> Span:
    """The lowest `size` ids of one source that nobody has. Raises ResourceExhausted."""
    ordered = sorted(taken, key=lambda span: span.first)
    for source in sorted(sources, key=lambda span: span.first):
        first = source.first
        for span in ordered:
            if span.first < first + size and first < span.end:
                first = span.end
        if first + size <= source.end:
            return Span(first, size)
    raise ResourceExhausted(f"map ids: no {size} {what} ids are free of those for containers")
