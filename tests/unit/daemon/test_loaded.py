"""What a manager loads before it answers: an interruption for all its clients at each restart."""

import subprocess
import sys
from pathlib import Path

import lighter.daemon.options

LOADED = Path(__file__).with_name("loaded.txt")
# As the package's launcher starts it: isolated, and without `site`.
SITE = Path(lighter.daemon.options.__file__).parent.parent.parent
UNTIL_IT_ANSWERS = f"""
import sys
sys.path.insert(0, {str(SITE)!r})
from lighter.daemon import later
later.put_off()
from lighter.daemon import __main__, config, core, journal, launch, manager, notify, program, spawn
print(*sys.modules)
"""
# By far the dearest that one import line would bring back.
COSTLY = {
    *("aiohttp", "click", "grpc", "multidict", "psutil", "pyroute2", "rich", "shutil", "tarfile"),
    *("toml", "urllib.request", "http.client", "email", "unittest", "zipfile"),
    # What lies behind a module that is put off (lighter.daemon.later), so none of them was asked.
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
