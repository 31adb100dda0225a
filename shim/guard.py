"""No import after the fork: an upgrade may have replaced or removed the files by then.

Everything a shim or worker may need is imported by the spawner. What is asked for later fails
here, loudly, before a file of another version is read. The one exception is `load_late`, for what
is large and few workers need: a worker does not outlive its manager, so it asks for files of a
version that still runs.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

# Loaded at first use by code that a shim runs: time.strptime, socket and str.encode("idna"),
# text files, the runtime's JSON log.
_LATE = (
    "_strptime",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "json.decoder",
    "json.encoder",
)


def preload() -> None:
    """Load what the standard library would load later by itself. Before the first fork."""
    for name in _LATE:
        importlib.import_module(name)


class _Refuse:
    """A finder that comes first and refuses whatever is not loaded yet."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        raise ImportError(f"import {name}: a shim loads nothing after its fork")


def forbid_imports() -> None:
    """From here on a module that is not loaded yet cannot be imported in this process."""
    sys.meta_path.insert(0, _Refuse())


def load_late(name: str) -> ModuleType:
    """A module, imported in spite of that. For workers alone. Raises ImportError, OSError."""
    if name in sys.modules:
        return sys.modules[name]
    refusing = sys.meta_path[:]
    sys.meta_path[:] = [finder for finder in refusing if not isinstance(finder, _Refuse)]
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path[:] = refusing


def format_error(error: BaseException) -> str:
    """Type, message and call places of an error; traceback would read source files for it."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{trace.tb_lineno} {code.co_qualname}")
        trace = trace.tb_next
    lines.append(f"{type(error).__name__}: {error}")
    return "\n".join(lines)
