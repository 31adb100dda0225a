"""Filling the gaps of the allocators: what is made afterwards lies together."""

import subprocess
import sys

SCRIPT = """
import sys
import json, logging, typing, decimal  # objects of all sizes, and holes between them
from lighter.shim import packing
if sys.argv[1] == "fill":
    gaps = packing.fill_gaps()
made = [bytes(100) for _ in range(400)] + [{number: 1} for number in range(400)]
print(len({id(one) // 4096 for one in made}))
print(sum(map(sys.getsizeof, gaps)) if sys.argv[1] == "fill" else 0)
"""


def pages(how: str) -> tuple[int, int]:
    """(pages that 800 small objects lie in, bytes that were taken for it)."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    count, taken = done.stdout.split()
    return int(count), int(taken)


def test_what_comes_after_lies_together() -> None:
    filled, taken = pages("fill")
    # 400 blocks of 144 bytes and 400 of 64 take 20.3 pages; the dicts' tables lie elsewhere.
    assert filled <= 40
    assert filled < pages("leave")[0]
    assert taken < 4 << 20
