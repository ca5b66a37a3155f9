"""Read what `torch.export.save()` wrote without executing anything that the file brings.

`torch.export.load()` trusts its file in five ways, as read in torch 2.13's sources: it falls back to unpickling freely
where tensors or example inputs are not plain ones; it unpickles custom objects; it hands symbolic expressions to
`sympy.sympify()`, which evaluates them; it writes the names of a graph's values, unchecked, into Python source; and it
turns guards into source that it executes. Here unpickling is limited to tensors, the rest is checked or left out, and
where this torch has not the parts that are guarded so, no file is read at all.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import ExportError

AGAIN = "save it anew: torch.export.save(torch.export.export(module, args), 'model.pt2')"
PLAIN = re.compile(r"[\w.]*")
WORD = re.compile(r"[A-Za-z_]\w*|[-+\d.e]+")
ARITHMETIC = (
    "getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|abs|[lr]shift|[gl][et]|eq|ne|and_|or_|not_|ceil|floor|trunc|sqrt"
)
TARGET = re.compile(
    rf"torch\.ops\.\w+\.\w+(\.\w+)?|(_operator|math)\.({ARITHMETIC})|torch\.(_C\._set_grad_enabled|_?sym_\w+)"
)
"""Operators, and the few functions of symbolic sizes; nothing that could import, load or run."""
FREE = frozenset({"as_string", "as_strings", "metadata", "torch_version"})
"""Texts that stay data: arguments of operators, comments, versions."""
TREES = frozenset({"in_spec", "out_spec"})
SIZES = re.compile(
    "(Floor|Ceil|Clean|IntTrue|FloatTrue)Div|(Python)?Mod|ModularIndexing|[LR]Shift|PowByNatural|FloatPow|"
    "(Ceil|Floor|Round|Trunc)ToInt|TruncToFloat|RoundDecimal|ToFloat|Identity|Where|IsNonOverlappingAndDenseIndicator|"
    "Add|Mul|Pow|Integer|Rational|Float|Symbol|Max|Min|Abs|And|Or|Not|floor|ceiling|"
    "Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|(Strict)?(Less|Greater)Than"
)
"""Functions of sizes, torch's own and sympy's."""


class Refused(Exception):
    """The file holds something that would be executed."""


def read(path: Path) -> Any:  # an ExportedProgram, which is not typed
    """Return the program in a .pt2 file.

    Raises:
        ExportError: The file is damaged, of another kind, or wants something executed.
    """
    import torch

    _check_kind(path)
    try:
        with _guarded():
            return torch.export.load(path)
    except (Refused, AttributeError) as exc:
        raise ExportError(f"{path.name} is refused: {exc}", hint=AGAIN) from exc
    except Exception as exc:  # torch raises many kinds for files that are damaged or of another version
        refused = _cause(exc)
        if refused is not None:
            raise ExportError(f"{path.name} is refused: {refused}", hint=AGAIN) from exc
        text = str(exc).strip().splitlines()[0] if str(exc).strip() else ""
        raise ExportError(f"{path.name} cannot be read: {type(exc).__name__}: {text}", hint=AGAIN) from exc


def _check_kind(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as exc:
        raise ExportError(f"{path} is not a .pt2 archive, or is cut short: {exc}", hint="get the file again") from exc
    if any(name.startswith("data/aotinductor/") for name in names):
        raise ExportError(
            f"{path.name} holds code that AOTInductor compiled, not a program to compile",
            hint="give the exported program that it was compiled from",
        )
    programs = [name for name in names if name.startswith("models/")]
    if "models/model.json" not in programs:
        found = f"it holds {', '.join(programs)}" if programs else "it holds none"
        raise ExportError(f"{path.name} has no program of the name 'model' in today's format; {found}", hint=AGAIN)


@contextmanager
def _guarded() -> Iterator[None]:
    import torch
    from torch._export.serde import serialize
    from torch.export.pt2_archive import _package

    load, parse = torch.load, serialize._bytes_to_dataclass

    def tensors_only(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "weights_only": True})

    def checked(kind: Any, content: bytes) -> Any:
        _check(json.loads(content))
        program = parse(kind, content)
        program.guards_code = []
        return program

    guards: list[tuple[Any, str, Any]] = [
        (torch, "load", tensors_only),
        (torch._C, "_pickle_load_obj", _refuse("a custom object")),
        (_package.pickle, "loads", _refuse("a pickled object")),
        (serialize, "_bytes_to_dataclass", checked),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in guards]
    try:
        for owner, name, guard in guards:
            setattr(owner, name, guard)
        yield
    finally:
        for owner, name, plain in before:
            setattr(owner, name, plain)


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise Refused(f"it holds {what}")

    return refuse


def _cause(exc: BaseException) -> str | None:
    from pickle import UnpicklingError

    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, Refused):
            return str(seen)
        if isinstance(seen, UnpicklingError):
            return "it holds pickled objects other than tensors"
        seen = seen.__cause__ or seen.__context__
    return None


# ---- what a program's description may say


def _check(value: object, key: str = "") -> None:
    """Refuse every text that torch would evaluate, or write into source, and that is not plainly harmless."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_text(str(name), "name")
            if name == "target" and "outputs" in value:
                name = "as_operator"  # a node's, not a weight's
            if name not in FREE and name != "guards_code":
                _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_text(text: str, key: str) -> None:
    if key == "expr_str":
        harmless = _is_expression(text)
    elif key in ("target", "as_operator"):
        harmless = bool(
            PLAIN.fullmatch(text) and (TARGET.fullmatch(text) or not text.startswith(("torch", "_operator")))
        )
    elif key in TREES:
        harmless = "__enum__" not in text  # it names a module to import
    else:
        harmless = bool(PLAIN.fullmatch(text))
    if not harmless:
        raise Refused(f"{key or 'a text'} is {text[:80]!r}")


def _is_expression(text: str) -> bool:
    """Whether a text is arithmetic on sizes: symbols, numbers, operators and functions of sizes."""
    try:
        return _is_size(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # of `Symbol('s0')` and `Float('0.5')`
            return bool(WORD.fullmatch(node.value))
        return isinstance(node.value, (int, float))
    if isinstance(node, ast.Name):
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        inside = [*node.args, *(keyword.value for keyword in node.keywords)]
        return bool(SIZES.fullmatch(node.func.id)) and all(map(_is_size, inside))
    if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)):
        return all(_is_size(inner) for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.expr))
    return False
