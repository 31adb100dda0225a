"""`python -m lighter.shim`, and what an installed lighter-spawner imports: the spawner.

What is imported, and in which order, decides what a shim costs: see `packing.py`. The standard
library's fork hooks (threading renews its locks, random its seed) would write to 195 pages of each
child, 0.8 MB. The spawner has one thread and nothing in a shim or worker draws from `random`, so
they are not registered: this comes before any import that would register one.
"""

import os
import sys


def _without_fork_hooks() -> None:
    os.register_at_fork = lambda **_hooks: None


_without_fork_hooks()

# First what there is one of, so that it lies together.
from lighter.shim import names, packing  # noqa: E402


def _make_ahead() -> tuple[list[object], list[str]]:
    here = os.path.dirname(__file__)
    found = names.names_in("lighter.shim", here)
    found |= names.names_in("lighter.proto", os.path.dirname(here) + "/proto")
    gaps = packing.fill_gaps()
    made = names.make_names(found)
    names.make_modules([name for name in made if name.startswith("lighter.")])
    return gaps, made


try:
    _ahead = _make_ahead()
except Exception as _error:  # memory that shims do not share is worth no host without a spawner
    sys.stderr.write(f"make names ahead: {_error}\n")

# Then what shims and workers need of others, and what they do not write to.
from lighter.shim import foundation  # noqa: E402, F401

_more_gaps = packing.fill_gaps()

# Then, close together, what they do.
from lighter.shim.spawner import main  # noqa: E402

if __name__ == "__main__":
    main()
