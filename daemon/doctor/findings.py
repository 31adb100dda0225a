"""What an examination of a host finds, one line for each thing that was looked at."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lighter.daemon.config.schema import Config
from lighter.proto.errors import LighterError, words_of

OK = "ok"
WARNING = "warning"  # works, and may surprise somebody one day
PROBLEM = "problem"  # something will fail, or has


@dataclass(frozen=True)
class Finding:
    """`check`: what was looked at; `found`: what is there; `advice`: what to do, "" for nothing."""

    check: str
    status: str
    found: str
    advice: str = ""


# One examination. It changes nothing, and ends by itself within seconds.
Check = Callable[[Config], Iterable[Finding]]


def run(checks: Iterable[tuple[str, Check]], config: Config) -> Iterator[Finding]:
    """Each check's findings. One that fails is a finding itself: the others are looked at too."""
    for name, check in checks:
        try:
            yield from check(config)
        except LighterError as err:
            yield Finding(name, PROBLEM, err.message)
        except OSError as err:
            yield Finding(name, PROBLEM, f"look at {name}: {words_of(err)}")
        except ValueError as err:
            yield Finding(name, PROBLEM, f"look at {name}: {type(err).__name__}: {err}")
