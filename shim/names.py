"""What there is one of, made ahead of all else, so that it lies together: names and modules.

The interpreter keeps one text of each name, made when the first code that has it is loaded, and
counts references to it whenever it is handed around as a constant. It counts those to a module, and
to what is in it, when it looks something up there or makes a function of it. A hundred modules are
loaded before those of shims, and each module with a hundred other objects: see `packing.py`.
"""

import os
import sys
from types import CodeType, ModuleType

_Loader = type(globals()["__loader__"])  # of all modules here
_CO_OPTIMIZED = 1  # inspect.CO_OPTIMIZED
_MAKES_OBJECTS = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


def names_in(package: str, directory: str) -> set[bytes]:
    """The names of a package's modules, and those that code of their functions may hand around.

    As bytes: these texts must not be there yet when `make_names` makes them.
    """
    suffix = os.path.splitext(__file__)[1]
    found: set[bytes] = set()
    for file in os.listdir(directory):
        name, its_suffix = os.path.splitext(file)
        if its_suffix == suffix and not name.startswith("__"):
            module = f"{package}.{name}"
            found.add(module.encode())
            code = _code(module, f"{directory}/{file}")
            if code is not None:
                _add_names(code, found)
    return found


def _code(module: str, path: str) -> CodeType | None:
    """What the module's import will run; None when that will fail."""
    try:
        code: CodeType | None = _Loader(module, path).get_code(module)
    except (ImportError, OSError, SyntaxError, ValueError, EOFError):
        return None
    return code


def _add_names(code: CodeType, found: set[bytes]) -> None:
    if code.co_flags & _CO_OPTIMIZED:  # a function's, not a class's or a module's
        if is_named_when_run(code):
            found.add(code.co_name.encode())
        _add_constants(code.co_consts, found)
    for one in code.co_consts:
        if type(one) is CodeType:
            _add_names(one, found)


def _add_constants(constants: tuple[object, ...], found: set[bytes]) -> None:
    for one in constants:
        if type(one) is str and is_name(one):
            found.add(one.encode())
        elif type(one) is tuple:
            _add_constants(one, found)


def is_named_when_run(code: CodeType) -> bool:
    """Whether running it, or the function around it, makes an object that has its name."""
    return bool(code.co_flags & _MAKES_OBJECTS) or "<locals>" in code.co_qualname


def is_name(text: str) -> bool:
    """Whether it looks like one to the interpreter, which then keeps one text of it."""
    return text.isascii() and text.replace("_", "a").isalnum()


def make_names(names: set[bytes]) -> list[str]:
    """Make these names, each the one of its kind from now on, unless there is one already."""
    return [sys.intern(name.decode()) for name in sorted(names)]


def make_modules(names: list[str]) -> None:
    """Make these modules, empty. From now on the import of one fills it."""
    made = {name: ModuleType(name) for name in names}
    # None: the import makes the module itself.
    _Loader.create_module = lambda _loader, spec: made.pop(spec.name, None)
