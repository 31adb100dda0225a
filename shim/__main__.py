"""`python -m lighter.shim`, and what an installed lighter-spawner imports: the spawner.

The standard library's fork hooks (threading renews its locks, random its seed) write to 195 pages
of a child, 0.8 MB that every shim would pay for. The spawner has one thread and nothing in a shim
or worker draws from `random`, so the hooks are not registered: this comes before any import that
would register one.
"""

import os


def _without_fork_hooks() -> None:
    os.register_at_fork = lambda **_hooks: None


_without_fork_hooks()

from lighter.shim.spawner import main  # noqa: E402

if __name__ == "__main__":
    main()
