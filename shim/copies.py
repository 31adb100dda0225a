"""Copies of what a shim runs, away from what it does not: functions, their code and its constants.

What runs is a small part of what modules hold, and the interpreter counts references to a function,
its name and its constants each time. Lying between what is never touched they would take a page
for every few of them. Kinds are copied one after the other, so that those of one size, which lie
together, are all such that are touched.

Modules, classes and properties go on with the copies, which the interpreter has to get to know
anew; what else holds a function gets a copy of its code alone. A text that looks like a name is the
only one of its kind, and no copy can be made of it: see `names.py`.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, ModuleType

from lighter.shim.names import is_name, is_named_when_run
from lighter.shim.packing import fill_gaps


@contextlib.contextmanager
def code_together() -> Iterator[None]:
    """Put the functions that run meanwhile into memory of their own, without gaps.

    Code of functions that are made each time they are needed is copied with the function around it.
    """
    ran: dict[int, CodeType] = {}  # by id: code that is equal need not be the same

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        ran[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
    _Copies(ran).put()


class _Copies:
    """By id of what they are copies of, which lives on; texts by what they say."""

    def __init__(self, ran: dict[int, CodeType]) -> None:
        self._ran = ran
        self._texts: dict[str, str] = {}
        self._constants: dict[int, object] = {}
        self._functions: dict[int, FunctionType] = {}
        self._codes: dict[int, CodeType] = {}

    def put(self) -> None:
        """Make the copies, and put them in the place of what they are copies of."""
        everything = gc.get_objects()
        old = [one for one in everything if type(one) is FunctionType and self._runs(one)]
        # What asking makes and keeps is not to lie between the copies.
        attributes = [vars(one) for one in old]
        _bytecodes = [code.co_code for code in self._ran.values()]
        _gaps = fill_gaps()
        for code in self._ran.values():
            self._constants_of(code)
        for one, its in zip(old, attributes, strict=True):
            self._functions[id(one)] = self._function(one, its)
        for one in everything:
            # Not by isinstance, which asks the object: one that stands for another may be dead.
            if issubclass(type(one), ModuleType | type):
                self._put_into(one)
        for one in (*old, *self._functions.values()):
            one.__code__ = self._code(one.__code__)

    def _runs(self, function: FunctionType) -> bool:
        return id(function.__code__) in self._ran

    def _constants_of(self, code: CodeType) -> None:
        if is_named_when_run(code):
            self._text(code.co_name)
            self._text(code.co_qualname)
        for one in code.co_consts[_has_docstring(code) :]:
            self._constant(one)

    def _constant(self, one: object) -> object:
        """The copy of a constant, where there may be more than one of it."""
        if type(one) is str:
            return self._text(one)
        if id(one) not in self._constants:
            self._constants[id(one)] = self._again(one)
        return self._constants[id(one)]

    def _again(self, one: object) -> object:
        if type(one) is tuple:
            return tuple([self._constant(item) for item in one])
        if type(one) is int:
            return one + 1 - 1
        if type(one) is float:
            return one * 1.0
        if type(one) is bytes:
            return bytes(bytearray(one))
        return one

    def _text(self, text: str) -> str:
        if text not in self._texts:
            self._texts[text] = text if is_name(text) else (text + " ")[:-1]
        return self._texts[text]

    def _function(self, one: FunctionType, attributes: dict[str, object]) -> FunctionType:
        """The same function in another place, but for its annotations and type parameters."""
        made = FunctionType(
            one.__code__, one.__globals__, one.__name__, one.__defaults__, one.__closure__
        )
        made.__qualname__ = self._texts.get(one.__qualname__, one.__qualname__)
        made.__kwdefaults__ = one.__kwdefaults__
        made.__module__ = one.__module__
        made.__doc__ = one.__doc__
        if attributes:
            made.__dict__.update(attributes)
        return made

    def _put_into(self, holder: ModuleType | type) -> None:
        for name, value in list(vars(holder).items()):
            if id(value) in self._functions:
                setattr(holder, name, self._functions[id(value)])
            elif type(value) in (staticmethod, classmethod):
                # Enums look whether theirs is the one of the class that they come from.
                if id(value.__func__) in self._functions:
                    setattr(holder, name, type(value)(self._functions[id(value.__func__)]))
            elif type(value) is property and id(value.fget) in self._functions:
                getter = self._functions[id(value.fget)]
                setattr(holder, name, property(getter, value.fset, value.fdel))

    def _code(self, code: CodeType) -> CodeType:
        """The copy of code that ran, the same one each time; other code as it is."""
        if id(code) not in self._ran:
            return code
        if id(code) not in self._codes:
            self._codes[id(code)] = code.replace(
                co_name=self._texts.get(code.co_name, code.co_name),
                co_qualname=self._texts.get(code.co_qualname, code.co_qualname),
                co_consts=tuple([self._constant_in_copy(one) for one in code.co_consts]),
            )
        return self._codes[id(code)]

    def _constant_in_copy(self, one: object) -> object:
        if type(one) is CodeType:
            return self._code(one)
        if type(one) is str:
            return self._texts.get(one, one)
        return self._constants.get(id(one), one)


def _has_docstring(code: CodeType) -> bool:
    return bool(code.co_consts) and type(code.co_consts[0]) is str and " " in code.co_consts[0]
