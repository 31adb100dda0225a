"""CRIU, which writes processes to disk and brings them back: whether it can, and why not.

runc runs it; what it says to runc is "criu failed". The reason is in its log, or in what it says
when it is asked whether it works with this kernel (criu(8), check).
"""

import contextlib
import os
import shutil
import subprocess

from lighter.daemon.files import read_capped
from lighter.daemon.oci.checks import check_path
from lighter.proto.errors import FailedPrecondition, InvalidArgument, words_of
from lighter.proto.paths import RUNTIME_PATH

_CHECK_S = 20.0
_MAX_LOG_BYTES = 64 << 20
_INVENTORY = "inventory.img"  # CRIU's list of what an image consists of


def check_new(directory: str) -> None:
    """Where a checkpoint is to be written. Raises InvalidArgument, FailedPrecondition."""
    check_path(directory, "directory of checkpoint")
    try:
        names = os.listdir(directory)
    except OSError as err:
        raise InvalidArgument(f"write checkpoint to {directory}: {err.strerror}") from err
    if names:
        raise FailedPrecondition(f"write checkpoint to {directory}: it is not empty")


def check_written(directory: str) -> None:
    """Make sure that there is a checkpoint to restore. Raises InvalidArgument."""
    check_path(directory, "directory of checkpoint")
    if not os.path.isfile(f"{directory}/{_INVENTORY}"):
        raise InvalidArgument(f"go on from {directory}: there is no checkpoint ({_INVENTORY})")


def why_not(log_path: str) -> str:
    """Why CRIU failed, "" when it does not say. Takes a moment: it may be asked."""
    program = shutil.which("criu", path=RUNTIME_PATH)
    if program is None:
        return "criu is not installed, which runc needs for it"
    said = ""
    with contextlib.suppress(OSError):
        log = read_capped(log_path, _MAX_LOG_BYTES) or b""
        said = _first_error(log.decode(errors="replace"))
    if said:
        return f"criu says: {said}"
    try:
        asked = subprocess.run(
            [program, "check"],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CHECK_S,
            stdin=subprocess.DEVNULL,
            env={"PATH": RUNTIME_PATH},
        )
    except subprocess.TimeoutExpired:
        return f"criu has not said in {_CHECK_S:g} s whether it works"
    except OSError as err:
        return f"criu cannot be asked whether it works: {words_of(err)}"
    said = _first_error(asked.stderr) if asked.returncode else ""
    return f"criu does not work on this kernel: {said}" if said else ""


def _first_error(text: str) -> str:
    """The first complaint: later ones tell that it was given up for that."""
    lines = [line for line in text.splitlines() if "Error (" in line]
    return lines[0].rpartition("Error ")[2].strip()[:300] if lines else ""
