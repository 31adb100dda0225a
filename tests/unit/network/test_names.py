"""Other containers' names in a hosts file: what is put there, and who may hold that up."""

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from lighter.daemon.network import hostfiles
from lighter.daemon.network.names import BEGIN, END, renewed
from lighter.daemon.network.request import NetworkRequest
from lighter.proto.errors import Unavailable

OWN = b"127.0.0.1\tlocalhost\n"
BLOCK = BEGIN + b"10.0.0.2\ta\n" + END


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OWN, OWN + BLOCK),
        (OWN[:-1], OWN + BLOCK),
        (b"", BLOCK),
        (OWN + BLOCK + b"10.9.9.9 mine\n", OWN + BLOCK + b"10.9.9.9 mine\n"),
        # A manager was cut off between the bytes and the file's new end.
        (OWN + BLOCK + b"0.0.3\tlonger\n" + END + b"x\n", OWN + BLOCK + b"x\n"),
        # Somebody has taken the second mark away.
        (OWN + BEGIN + b"10.9.9.9 mine\n", OWN + BLOCK + b"10.9.9.9 mine\n"),
    ],
)
def test_the_block_is_put_in_place_and_the_rest_stays(old: bytes, new: bytes) -> None:
    assert renewed(old, BLOCK) == new
    assert renewed(new, BLOCK) == new
    assert renewed(new, b"") == new.replace(BLOCK, b"")


def test_a_lease_that_a_container_holds_is_not_waited_for(tmp_path: Path) -> None:
    """open(2) would wait for it for 45 s, and nobody has to give it up before."""
    hosts = tmp_path / "hosts"
    hosts.write_bytes(OWN)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = os.open(hosts, os.O_RDONLY)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="hosts"):
            hostfiles.write(str(tmp_path), NetworkRequest(), [], "name")
        assert time.monotonic() - began < 10
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)
