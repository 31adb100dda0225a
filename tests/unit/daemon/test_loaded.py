"""What a manager loads before it answers: an interruption for all its clients at each restart."""

import subprocess
import sys
from pathlib import Path

import lighter.daemon.entry.options

LOADED = Path(__file__).with_name("loaded.txt")
# As the package's launcher starts it: isolated, and without `site`.
SITE = Path(lighter.daemon.entry.options.__file__).parents[3]
UNTIL_IT_ANSWERS = f"""
import sys
sys.path.insert(0, {str(SITE)!r})
from lighter.daemon.entry import later
later.put_off()
from lighter.daemon import __main__, core, journal, manager, notify
from lighter.daemon.config import schema
from lighter.daemon.entry import launch
from lighter.daemon.entry import program
from lighter.daemon.spawning import spawner
print(*sys.modules)
"""
# By far the dearest that one import line would bring back.
COSTLY = {
    *("aiohttp", "click", "grpc", "multidict", "psutil", "pyroute2", "rich", "shutil", "tarfile"),
    *("tomli_w", "urllib.request", "http.client", "email", "unittest", "zipfile"),
    # What lies behind a module that is put off (entry.later), so none of them was asked.
    *("_ssl", "_hashlib", "_ast", "dis", "tokenize", "tomllib._parser"),
}


def test_a_start_loads_what_is_written_down_until_it_answers() -> None:
    """Each module of ours is a decision; the list changes with the code, in the same commit."""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", UNTIL_IT_ANSWERS],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert not loaded & COSTLY
    ours = {name for name in loaded if name.startswith("lighter.")}
    assert ours == set(LOADED.read_text().split())
