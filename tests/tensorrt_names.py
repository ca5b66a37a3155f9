"""Which names of TensorRT some source files use, and whether a version has them: `tensorrt_names.py MODULE FILE...`.

Imports the real module and follows its objects through the source: `trt` and `self._trt` are the module, what a call
returns is told by the docstring of what is called, and what a function of the source is given or returns is what it is
called with and what its `return` says. Prints JSON: the names by class, and what is missing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Known:
    """What an expression is: an object of the module, an instance of one of its classes, or a list of those."""

    what: Any
    kind: str
    """`object`, `instance` or `list`."""


class Reader:
    """Follows the objects of a module through source files."""

    def __init__(self, module: Any, files: list[Path]) -> None:
        self.module = module
        self.known: dict[tuple[str, str], Known] = {}
        """(function, expression) -> what it is; the attributes of `self` are the same in all functions."""
        self.functions: dict[str, list[tuple[str, ast.FunctionDef]]] = {}
        self.used: dict[str, set[str]] = {}
        self.missing: set[str] = set()
        self.nodes: list[tuple[str, ast.AST]] = []
        """Every node with the function that it lies in; a function within another belongs to it."""
        for path in files:
            self._take(path.name, ast.parse(path.read_text()))

    def _take(self, place: str, node: ast.AST, inside: bool = False) -> None:
        if isinstance(node, ast.FunctionDef):
            place = place if inside else f"{place}:{node.name}:{node.lineno}"
            self.functions.setdefault(node.name, []).append((place, node))
            inside = True
        self.nodes.append((place, node))
        for child in ast.iter_child_nodes(node):
            self._take(place, child, inside)

    def read(self) -> None:
        """Carry on what is known until nothing is new, then look at every attribute."""
        before = -1
        while len(self.known) > before:
            before = len(self.known)
            for place, node in self.nodes:
                self._follow(place, node)
        for place, node in self.nodes:
            self._look(place, node)

    def _follow(self, place: str, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target, assigned in _pairs(node):
                self._learn(place, target, self.type_of(place, assigned))
        elif isinstance(node, ast.For | ast.comprehension):
            several = self.type_of(place, node.iter)
            if several is not None and several.kind == "list":
                self._learn(place, node.target, Known(several.what, "instance"))
        elif isinstance(node, ast.Call):
            for inside, function in self.functions.get(_called(node), []):
                handed_through = {ast.unparse(each) for each in _returned(function)}
                for parameter, argument in zip(_parameters(function), node.args, strict=False):
                    if parameter not in handed_through:  # it may be another thing at every call
                        self._learn(inside, ast.Name(parameter), self.type_of(place, argument))

    def _learn(self, place: str, target: ast.expr, value: Known | None) -> None:
        if value is None or not isinstance(target, ast.Name | ast.Attribute):
            return
        key = _key(place, ast.unparse(target))
        if self.known.setdefault(key, value) != value:
            raise SystemExit(f"{place}: {key[1]} is {self.known[key]} and {value}: give one of them another name")

    def type_of(self, place: str, node: ast.expr) -> Known | None:
        """Return what an expression is, or None where it has nothing to do with the module."""
        text = ast.unparse(node)
        if text in ("trt", "self._trt"):
            return Known(self.module, "object")
        if (known := self.known.get(_key(place, text))) is not None:
            return known
        if isinstance(node, ast.Attribute):
            owner = self.type_of(place, node.value)
            # Of an object of our own, such as a `Build`: its attributes have names that nothing else has.
            return self._attribute(owner, node.attr) if owner is not None else self.known.get(("", f"self.{node.attr}"))
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            element = self.type_of(place, node.elt)
            return Known(element.what, "list") if element is not None else None
        return self._result(place, node) if isinstance(node, ast.Call) else None

    def _attribute(self, owner: Known, name: str) -> Known | None:
        value = getattr(owner.what, name, None)
        if owner.kind != "object":
            return self._told(value.fget) if isinstance(value, property) else None
        if value is None or isinstance(value, str):
            return None
        if inspect.isclass(value) or inspect.isroutine(value):
            return Known(value, "object")
        return Known(type(value), "instance")  # a member of an enumeration

    def _result(self, place: str, node: ast.Call) -> Known | None:
        if isinstance(node.func, ast.Attribute) and (owner := self.type_of(place, node.func.value)) is not None:
            called = getattr(owner.what, node.func.attr, None)
            return Known(called, "instance") if inspect.isclass(called) else self._told(called)
        for inside, function in self.functions.get(_called(node), []):
            parameters = _parameters(function)
            for returned in _returned(function):
                if (name := ast.unparse(returned)) in parameters:
                    return self.type_of(place, node.args[parameters.index(name)])
                if (value := self.type_of(inside, returned)) is not None:
                    return value
        return None

    def _told(self, function: Any) -> Known | None:
        """Return what a function's docstring says that it returns, where that is a class of the module."""
        for name in re.findall(r"-> [\w.:]*?(\w+)$", inspect.getdoc(function) or "", re.MULTILINE):
            for kind in (getattr(self.module, name, None), getattr(self.module, name.removeprefix("I"), None)):
                if inspect.isclass(kind):  # C++ has `IParserError` where Python has `ParserError`
                    return Known(kind, "instance")
        return None

    def _look(self, place: str, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            self._use(self.type_of(place, node.value), node.attr, stored=isinstance(node.ctx, ast.Store))
        elif isinstance(node, ast.ClassDef):
            for base in filter(None, (self.type_of(place, expression) for expression in node.bases)):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        self._use(Known(base.what, "instance"), method.name, stored=False)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = self.type_of(place, node.func.value)
            documented = inspect.getdoc(getattr(owner.what, node.func.attr, None)) if owner is not None else None
            for keyword in node.keywords:
                if documented and not re.search(rf"\b{keyword.arg}:", documented):
                    self.missing.add(f"{ast.unparse(node.func)}({keyword.arg}=)")

    def _use(self, owner: Known | None, name: str, *, stored: bool) -> None:
        if owner is None or owner.kind == "list":
            return
        kind = "" if owner.what is self.module else owner.what.__name__
        self.used.setdefault(kind, set()).add(name)
        value = getattr(owner.what, name, None)
        if value is None or (stored and (not isinstance(value, property) or value.fset is None)):
            self.missing.add(f"{kind}.{name}".lstrip("."))


def _key(place: str, text: str) -> tuple[str, str]:
    return ("" if text.startswith("self.") else place, text)


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _parameters(function: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in function.args.args]
    return names[1:] if names[:1] == ["self"] else names


def _returned(function: ast.FunctionDef) -> list[ast.expr]:
    returns = (node for node in ast.walk(function) if isinstance(node, ast.Return))
    return [node.value for node in returns if node.value is not None]


def main(module: str, files: list[str]) -> Iterator[str]:
    """Yield the answer as one line of JSON."""
    reader = Reader(importlib.import_module(module), [Path(file) for file in files])
    reader.read()
    used = {place: sorted(names) for place, names in sorted(reader.used.items())}
    yield json.dumps({"version": reader.module.__version__, "used": used, "missing": sorted(reader.missing)})


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2:]))
