"""A newer ctr than the host's package: 1.7, whose image commands can use Transfer."""

import subprocess
from pathlib import Path

CTR = Path(__file__).resolve().parents[2] / ".cache/ctr/1.7/usr/bin/ctr"


def run_newer(
    address: str, *words: str, data: bytes | None = None, timeout: float = 60
) -> "subprocess.CompletedProcess[bytes]":
    """How it ends. Raises AssertionError when it is missing."""
    assert CTR.exists(), f"{CTR} is missing: .ci/setup fetches it"
    return subprocess.run(
        [str(CTR), "--address", address, *words],
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
