"""Objects that are not counted any more, where the interpreter has such.

Versions before 3.12 have none: nothing may change there. What comes later is counted on all.
"""

import subprocess
import sys

KNOWN = sys.version_info[:2] in ((3, 12), (3, 13))
SCRIPT = """
import gc, os, sys
from lighter.shim import immortal, linux

class Own:
    text = "one of a kind " + str(len(sys.argv))

kinds = {
    "module": linux, "function": linux.mount, "code": linux.mount.__code__, "class": Own,
    "constants": linux.mount.__code__.co_consts, "text": Own.text, "dict": linux.__dict__,
    "tuple": Own.__mro__, "method of a built-in type": dict.__dict__["get"],
}
print(immortal.make_immortal() > 10_000)
forever = sys.getrefcount(None)
print(*(sys.getrefcount(one) == forever for one in kinds.values()))

gc.freeze()
freed = []
class Late:
    def __init__(self, name):
        self.name, self.inherited = name, kinds
    def __del__(self):
        freed.append(self.name)
Late("counted")
late = Late("collected")
late.circle = late
del late
gc.collect()
print(*freed, flush=True)
os._exit(0)
"""


def test_all_there_is_becomes_immortal_and_what_comes_later_does_not() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"{KNOWN}",
        " ".join([f"{KNOWN}"] * 9),
        "counted collected",
    ], done.stderr
