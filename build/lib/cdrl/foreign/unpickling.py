"""Pickles read for the values in them, by an interpreter that has no way to run what they name.

A pickle is a program: it may look up any function and have it called, set any attribute of what it has made, and ask
for any amount of memory. Python's own unpickler, whatever it is allowed to look up, still calls methods of the
objects that it makes. Here opcodes build dicts, lists, tuples, numbers and text; a name is looked up in a table of the
caller's, and what is made by calling one takes its state by a method of its own or not at all.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol, runtime_checkable

MOST_OPCODES = 5_000_000
"""An empty dict is one byte of a file and 64 of memory."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Foreign:
    """Stands for what a pickle names or makes that means nothing here; it takes whatever is put into it."""


class Named:
    """What a pickle has looked up; all that it can do with it is to call it or to hand it on."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value


_KEYS = (str, bytes, int, float, type(None), Foreign, Named)


@runtime_checkable
class TakesState(Protocol):
    """An object made here that a pickle puts a state on."""

    def take_state(self, state: Any) -> None:
        """Take up what the pickle says. Raises ValueError where that is not to be taken."""


def read_pickle(
    stream: IO[bytes] | bytes,
    known: Mapping[tuple[str, str], Any],
    *,
    ignore_unknown: bool = False,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that was pickled.

    Args:
        stream: of bytes; old strings in it are read as Latin-1.
        known: by module and name, the functions that stand for what the pickle may call, and the values of what it
            may only hand on (as `Named`).
        ignore_unknown: make a `Foreign` of what is not ``known``, instead of refusing it.
        persistent: makes an object of a persistent id; without it there may be none.

    Raises:
        ValueError: it is cut, damaged, or names what is not known.
    """
    return _Interpreter(known, ignore_unknown, persistent).run(stream)


class _Interpreter:
    def __init__(
        self, known: Mapping[tuple[str, str], Any], ignore_unknown: bool, persistent: Callable[[Any], Any] | None
    ) -> None:
        self._known, self._ignore_unknown, self._persistent = known, ignore_unknown, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes] | bytes) -> Any:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count >= MOST_OPCODES:
                    raise ValueError(f"it has more than {MOST_OPCODES:,} opcodes")
                name = opcode.name
                if name in _VALUES:
                    self._stack.append(argument)
                elif name == "STOP":
                    break
                else:
                    self._do(name, argument)
            return self._stack.pop()
        except IndexError:
            raise ValueError("it takes more from its stack than there is") from None
        except (MemoryError, OverflowError):
            # What is read is given the memory that it claims before a byte of it is seen.
            raise ValueError("it claims more bytes than there is memory for") from None

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"it asks for the object {argument}, which it has not put aside")
            stack.append(self._memo[argument])
        elif name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            self._name(name, argument)
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
            self._call(name)
        elif name in ("PERSID", "BINPERSID"):
            if self._persistent is None:
                raise ValueError("it names an object outside of it")
            stack.append(self._persistent(argument if name == "PERSID" else stack.pop()))
        elif name == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            self._collect(name)

    def _collect(self, name: str) -> None:
        """Marks, and what is made of all that lies above one."""
        if name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name == "POP":
            if self._stack:
                self._stack.pop()
            else:
                self._above_mark()
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_SET"):
            made: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
            self._stack.append(made.get(name, Foreign)())
        elif name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = [self._stack.pop() for _ in range(count)][::-1]
            _extend(self._stack[-1], items, pairs=name == "SETITEM")
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            items = self._above_mark()
            _extend(self._stack[-1], items, pairs=name == "SETITEMS")
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET", "POP_MARK"):
            items = self._above_mark()
            if name == "DICT":
                made_dict: dict[Any, Any] = {}
                _extend(made_dict, items, pairs=True)
                self._stack.append(made_dict)
            elif name != "POP_MARK":
                self._stack.append(Foreign() if name == "FROZENSET" else tuple(items) if name == "TUPLE" else items)
        else:
            raise ValueError(f"it has the opcode {name}, which the format does not hold")

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _name(self, opcode: str, argument: Any) -> None:
        if opcode == "STACK_GLOBAL":
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, _, name = argument.partition(" ")
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it names something by what is not text")
        if (module, name) in self._known:
            found: Any = Named(f"{module}.{name}", self._known[module, name])
        elif self._ignore_unknown:
            found = Foreign()
        else:
            raise ValueError(f"it names {module}.{name}, which the format does not hold")
        if opcode == "INST":
            found = _called(found, tuple(self._above_mark()))
        self._stack.append(found)

    def _call(self, opcode: str) -> None:
        if opcode == "OBJ":
            function, *arguments = self._above_mark()
            self._stack.append(_called(function, tuple(arguments)))
            return
        if opcode == "NEWOBJ_EX":
            self._stack.pop()  # arguments by name
        positional = self._stack.pop()
        self._stack.append(_called(self._stack.pop(), positional))

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, TakesState):
            target.take_state(state)
        elif not (self._ignore_unknown and isinstance(target, Foreign | dict)):
            raise ValueError(f"it puts a state on {type(target).__name__}, which the format does not hold")


def _called(function: Any, arguments: Any) -> Any:
    if isinstance(function, Foreign):
        return Foreign()
    if not isinstance(function, Named) or not callable(function.value) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no function")
    try:
        return function.value(*arguments)
    except TypeError:
        raise ValueError(f"it calls {function.name} with what that does not take") from None


def _extend(target: Any, items: list[Any], *, pairs: bool) -> None:
    if isinstance(target, Foreign):
        return
    if not pairs and isinstance(target, list):
        target.extend(items)
        return
    if not pairs or not isinstance(target, dict) or len(items) % 2:
        raise ValueError(f"it puts items into {type(target).__name__}, which does not take them")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of tuples within tuples may take for ever.
        if not all(isinstance(part, _KEYS) for part in (key if isinstance(key, tuple) else (key,))):
            raise ValueError(f"it has {type(key).__name__} for the key of a dict")
        target[key] = value
