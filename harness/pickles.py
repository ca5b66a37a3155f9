"""Read a torch checkpoint that pickles whole objects, without executing anything.

A pickle is a program: it names callables and has them called. Here it is read as data instead. This reader walks its
opcodes; a name stays a name, and a call becomes a record of what was to be called with which arguments. No name is
ever imported, and the only things ever made are tensors, containers and numbers, by the code in this file. So the
classes that a checkpoint was written with need not be installed, and a hostile one cannot do anything.

Safety does not hang on a list of dangerous names. Names that no model needs are refused all the same, because a file
that wants them is not a checkpoint.
"""

from __future__ import annotations

import pickletools
import re
import sys
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    import torch

HARMLESS = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "bytearray complex dict float frozenset int list object range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
"""Of the standard library. Even these are not called: containers are made here, the rest stay records."""
PLATFORM = frozenset({"nt", "posix", "riscos"})
"""What `os` is called underneath, wherever the file was written."""
STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}
"""A storage's class, by name -> the dtype of its elements."""


@dataclass(frozen=True)
class Name:
    """The name of a class or function in a pickle. Never looked up."""

    text: str


@dataclass(eq=False)
class Stub:
    """An object that a pickle wanted made: the name of its class, the arguments and the state. Does nothing."""

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    """What was stored under keys, for a class derived from dict."""

    def attribute(self, name: str) -> Any:
        """Return an attribute out of the state, or None."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state.get(name) if isinstance(state, dict) else None


class NotAPickle(Exception):
    """The bytes do not follow the format."""


class Unwanted(Exception):
    """A name that no checkpoint needs."""


_DAMAGE = (
    NotAPickle,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading a damaged or nonsensical file may raise."""


def read(path: Path) -> Any:
    """Return what a zip checkpoint of `torch.save` holds, classes replaced by `Stub`.

    Raises:
        UsageError: It is damaged, or names something that no checkpoint needs; the message says what.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            program = next((name for name in names if name.endswith("/data.pkl")), None)
            if program is None:
                raise NotAPickle("it is a zip file without data.pkl")
            folder = program.removesuffix("data.pkl")
            order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
            if order.strip() != sys.byteorder.encode():
                raise NotAPickle("it was written on a machine of another byte order")
            storages = _Storages(lambda key: archive.read(f"{folder}data/{key}"))
            return _Reader(storages).run(archive.read(program))
    except Unwanted as exc:
        raise UsageError(
            f"{path} is refused: it wants '{exc}', which no checkpoint needs; nothing of it was executed",
            hint="do not trust this file; weights are safest as .safetensors",
        ) from None
    except _DAMAGE as exc:
        raise UsageError(f"{path} cannot be read as a checkpoint: {exc}", hint="get the file again") from exc


class _Storages:
    """The tensors' bytes, each read once."""

    def __init__(self, read_record: Callable[[str], bytes]) -> None:
        self._read = read_record
        self._known: dict[tuple[str, str], torch.Tensor] = {}

    def get(self, reference: Any) -> torch.Tensor:
        import torch

        if not (isinstance(reference, tuple) and len(reference) == 5 and reference[0] == "storage"):
            raise NotAPickle("a persistent id is not that of a storage")
        _, kind, key, _, size = reference
        name = kind.text.removeprefix("torch.") if isinstance(kind, Name) else ""
        if name not in STORAGES or not isinstance(key, str) or not isinstance(size, int):
            raise NotAPickle(f"a storage of kind '{name or kind}' is not known")
        if (key, name) not in self._known:
            dtype = getattr(torch, STORAGES[name])
            data = bytearray(self._read(key))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if flat.numel() < size:
                raise NotAPickle(f"storage {key} has {flat.numel()} elements, expected {size}")
            self._known[key, name] = flat
        return self._known[key, name]


_MARK = object()


class _Reader:
    """A stack machine for pickle's opcodes whose calls only make containers, tensors and stubs."""

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return self._stack.pop()
            if _PUSHES_ARGUMENT.fullmatch(opcode.name):
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            else:
                method = getattr(self, "_" + opcode.name.lower(), None)
                if method is None:
                    raise NotAPickle(f"opcode {opcode.name} has no place in a checkpoint")
                method(argument)
        raise NotAPickle("it ends too early")

    def _items(self) -> list[Any]:
        """Take everything above the last mark from the stack."""
        index = len(self._stack) - 1
        while self._stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise NotAPickle("a mark is missing")
        items = self._stack[index + 1 :]
        del self._stack[index:]
        return items

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._items()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: Any) -> None:
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._items()))

    def _tuple1(self, _: Any) -> None:
        self._take_tuple(1)

    def _tuple2(self, _: Any) -> None:
        self._take_tuple(2)

    def _tuple3(self, _: Any) -> None:
        self._take_tuple(3)

    def _take_tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def _list(self, _: Any) -> None:
        self._stack.append(self._items())

    def _dict(self, _: Any) -> None:
        items = self._items()
        self._stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(self._items()))

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Stub):
            raise NotAPickle(f"{type(target).__name__} cannot be appended to")

    def _additems(self, _: Any) -> None:
        items = self._items()
        if type(self._stack[-1]) is not set:
            raise NotAPickle("only a set takes items")
        self._stack[-1].update(items)

    def _setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._store([key, value])

    def _setitems(self, _: Any) -> None:
        self._store(self._items())

    def _store(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Stub):
            target = target.items
        if type(target) is not dict:
            raise NotAPickle(f"{type(target).__name__} takes no keys")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise NotAPickle("a name is not a text")
        self._stack.append(_named(module, name))

    def _binpersid(self, _: Any) -> None:
        self._stack.append(self._storages.get(self._stack.pop()))

    def _reduce(self, _: Any) -> None:
        args, target = self._stack.pop(), self._stack.pop()
        self._stack.append(_made(target, args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        keywords, args, target = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if not isinstance(target, Name) or type(args) is not tuple:
            raise NotAPickle("an object is made of no class")
        self._stack.append(Stub(target.text, args, items=keywords if type(keywords) is dict else {}))

    def _inst(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_made(_named(module, name), tuple(self._items())))

    def _obj(self, _: Any) -> None:
        target, *args = self._items()
        self._stack.append(_made(target, tuple(args)))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Stub):
            target.state = state
        # An OrderedDict may carry attributes (a state dict's `_metadata`); tensors theirs. Neither is needed.


_PUSHES_ARGUMENT = re.compile(
    "(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?(BIN)?(UNICODE|STRING)|(SHORT_)?BINBYTES|BIN(UNICODE|BYTES)8|BYTEARRAY8"
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def _named(module: str, name: str) -> Name:
    # torch's default protocol writes the standard library's names as Python 2 had them.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    text = f"{module}.{name}"
    root = module.partition(".")[0]
    if (root in sys.stdlib_module_names or root in PLATFORM) and name not in HARMLESS.get(module, "").split():
        raise Unwanted(text)
    return Name(text)


def _made(target: Any, args: Any) -> Any:
    """Return what a call stands for: a container, a tensor, or else a record of the call."""
    if not isinstance(target, Name) or type(args) is not tuple:
        raise NotAPickle("something is called that has no name")
    if target.text in _MAKERS:
        return _MAKERS[target.text](*args)
    return Stub(target.text, args)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    import torch

    numbers = [offset, *size, *stride]
    if not isinstance(storage, torch.Tensor) or any(type(number) is not int or number < 0 for number in numbers):
        raise NotAPickle("a tensor's shape is not made of whole numbers")
    # Refuses a view that reaches beyond its storage.
    return torch.as_strided(storage, size, stride, offset)


def _of_type(function: Any, _kind: Any, args: Any, *_: Any) -> Any:
    """Return the tensor beneath one that carries attributes."""
    return _made(function, args)


def _inner(tensor: Any, *_: Any) -> Any:
    return tensor


def _dict(*args: Any) -> dict[Any, Any]:
    return dict(args[0]) if args else {}


_MAKERS: dict[str, Callable[..., Any]] = {
    "builtins.dict": _dict,
    "builtins.list": lambda items=(): list(items),
    "builtins.set": lambda items=(): set(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "collections.OrderedDict": _dict,
    "torch.Size": lambda items=(): tuple(items),
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_parameter": _inner,
    "torch._utils._rebuild_parameter_with_state": _inner,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
