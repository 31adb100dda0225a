"""Modules of the standard library that a start binds, and that nobody uses before it has answered.

asyncio and libzmq's binding load them with themselves: TLS, and what only an error or a debugger
looks at. Here their name is bound at once, and the file is read when something of it is asked for,
at the latest when clients have their first answers. That is before there is a second thread, which
could find one half loaded.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

PUT_OFF = frozenset(
    {
        "ast",
        "asyncio.sslproto",
        "base64",
        "hashlib",
        "inspect",
        "ipaddress",
        "linecache",
        "locale",
        "random",
        "ssl",
        "textwrap",
        "tomllib",
        "urllib.parse",
    }
)


class _Later(ModuleType):
    """A module without its contents: the first name that is missed in it brings them all."""

    def __getattr__(self, name: str) -> Any:
        load(self)
        return getattr(self, name)


class _Loader:
    """Makes the module, and leaves running its code to `load`."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind

    def create_module(self, _spec: ModuleSpec) -> None:
        """As ever."""

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._behind
        module.__class__ = _Later


class _Finder:
    """Comes first, and finds what is to be put off."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in PUT_OFF:
            return None
        spec = PathFinder.find_spec(name, path, target)
        # One of machine code is made by its own loader, and cannot be filled later.
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


def put_off() -> None:
    """From here on, until `put_off_until_now`."""
    sys.meta_path.insert(0, _Finder())


def load(module: ModuleType) -> None:
    """Run its code, unless that was begun."""
    if isinstance(module, _Later):
        spec = module.__spec__
        assert spec is not None and spec.loader is not None
        changed: Any = module
        changed.__class__ = ModuleType
        try:
            spec.loader.exec_module(module)
        except BaseException:
            changed.__class__ = _Later
            raise


def put_off_until_now() -> list[ModuleType]:
    """The modules that are still to be loaded; no other is put off any more."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    known = [sys.modules[name] for name in sorted(PUT_OFF & sys.modules.keys())]
    return [module for module in known if isinstance(module, _Later)]
