"""--filter of the lists of containers, as docker has it."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.lists import made_at, state_text

# Docker's words, and ours for what has ended, whether it is started again or not.
_STATUS_WORDS = ("created", "running", "paused", "restarting", "stopped", "exited", "unknown")
_HEALTH_WORDS = ("starting", "healthy", "unhealthy", "none")

Row = Mapping[str, Any]
Test = Callable[[Row], bool]


class Filter:
    """All --filter words of one list. Values of one key are alternatives, keys add up; of labels
    every one must be there, as docker has it. Raises grammar.UsageError.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._tests: dict[str, list[Test]] = {}
        self._born: dict[str, int] = {}
        self._keys: set[str] = set()
        for word in words:
            key, sign, value = word.partition("=")
            make = _FILTERS.get(key)
            if make is None or not sign:
                raise grammar.UsageError(
                    f"--filter {word!r}: expected one of {', '.join(_FILTERS)}, = and a value"
                )
            self._keys.add(key)
            # Each label is a key of its own: they add up.
            name = word if key == "label" else key
            self._tests.setdefault(name, []).append(make(self, value))

    @property
    def of_states(self) -> bool:
        """Whether it asks for states: then those that do not run are looked at too."""
        return bool(self._keys & {"status", "exited"})

    @property
    def needs_all(self) -> bool:
        """Whether containers must be known that are not in the list, or their labels."""
        return bool(self._keys & {"label", "before", "since"})

    def know(self, containers: Sequence[Row]) -> None:
        """Learn when each container was made, for before= and since=."""
        self._born = {row["id"]: row["created_at"] for row in containers}

    def chosen(self, rows: Sequence[Row]) -> list[Row]:
        if not self._born:
            self.know(rows)
        return [
            row
            for row in rows
            if all(any(test(row) for test in tests) for tests in self._tests.values())
        ]

    def made(self, container_id: str) -> int:
        if container_id not in self._born:
            raise grammar.UsageError(f"--filter: there is no container {container_id}")
        return self._born[container_id]

    def of_name(self, value: str) -> Test:
        """A regular expression, which a part of the name is too; docker's names begin with "/"."""
        try:
            pattern = re.compile(value)
        except re.error as err:
            raise grammar.UsageError(f"--filter name={value!r}: {err}") from err
        return lambda row: any(pattern.search(name) for name in (row["id"], f"/{row['id']}"))

    def of_id(self, value: str) -> Test:
        return lambda row: str(row["id"]).startswith(value)

    def of_ancestor(self, value: str) -> Test:
        """The image by its name, in full or as people shorten it."""

        def test(row: Row) -> bool:
            image = str(row["image"])
            names = {image, image.rpartition("@")[0], image.rpartition(":")[0]}
            return value in names or any(name.endswith(f"/{value}") for name in names)

        return test

    def of_label(self, value: str) -> Test:
        key, sign, wanted = value.partition("=")

        def test(row: Row) -> bool:
            labels = row.get("labels") or {}
            return key in labels and (not sign or labels[key] == wanted)

        return test

    def of_status(self, value: str) -> Test:
        if value not in _STATUS_WORDS:
            raise grammar.UsageError(
                f"--filter status={value!r}: expected one of {', '.join(_STATUS_WORDS)}"
            )
        return lambda row: value in (row["status"], state_text(row))

    def of_code(self, value: str) -> Test:
        if not re.fullmatch(r"[0-9]+", value):
            raise grammar.UsageError(f"--filter exited={value!r}: expected an exit code")
        code = int(value)
        return lambda row: state_text(row) == "exited" and row["exit_status"] == code

    def of_health(self, value: str) -> Test:
        if value not in _HEALTH_WORDS:
            raise grammar.UsageError(
                f"--filter health={value!r}: expected one of {', '.join(_HEALTH_WORDS)}"
            )
        return lambda row: (row.get("health") or "none") == value

    def before(self, value: str) -> Test:
        return lambda row: self._age(row) < self.made(value)

    def since(self, value: str) -> Test:
        return lambda row: self._age(row) > self.made(value)

    def _age(self, row: Row) -> int:
        return self._born.get(row["id"], made_at(row))


_FILTERS: dict[str, Callable[[Filter, str], Test]] = {
    "id": Filter.of_id,
    "name": Filter.of_name,
    "ancestor": Filter.of_ancestor,
    "label": Filter.of_label,
    "status": Filter.of_status,
    "exited": Filter.of_code,
    "health": Filter.of_health,
    "before": Filter.before,
    "since": Filter.since,
}
