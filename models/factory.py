"""The user's own module from a callable of theirs: `--model package.module:callable`.

The contract:

    def make(batch: int = 1, sequence: int = 128) -> tuple[nn.Module, example_inputs]:
        ...
        return module, {"input_ids": torch.ones(batch, sequence, dtype=torch.int64)}

- It is imported from the folder in which the command was given, and that folder is its working directory. Packages
  there that are called `models`, `backends`, `harness` or `reports` win over harness' own while it runs; what its code
  imports later, in `forward`, it should have imported before.
- Example inputs are a tensor, a tuple or list of tensors, or a dict of them. Those of a tuple are given to `forward` by
  position and take the names of its parameters; those of a dict are given by keyword: its keys are such names.
- Each parameter that has a whole number as its default, or none, is a free dimension: `--dim sequence=512` passes
  `sequence=512`, `--batch 4` passes `batch=4` (without a default, `batch` is 1). An axis of an input belongs to
  `batch` where it is the first and has its size, and to another dimension where it alone has that size.
  A parameter called `seed` is passed the run's seed; all others keep their defaults.
- `forward` returns a tensor, a tuple or list of tensors, or a dict of them, whose keys then name the outputs.
- What it cannot say of itself stands after it: `package.module:make:task=classification,images=imagenet`.
- The weights are those that the module has when it is returned. It is put in eval mode, on the CPU.
- Input set 0 is the example; the other sets hold the elements of each input in another, seeded order.
- The export is made again when one of the Python files below that folder changes that were imported for it. Files that
  it reads otherwise, such as a checkpoint, are not watched: `--refresh` exports anew.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api import InputSpec
from harness.errors import ExportError, UsageError
from harness.inputs import ExampleModel
from harness.modelspec import BATCH, ModelSpec
from models.user_code import files_below, user_code

if TYPE_CHECKING:
    import torch

SEED = "seed"
CONTRACT = "a factory returns (module, example_inputs)"


class Factory(ExampleModel):
    """What a user's callable makes."""

    def __init__(self, spec: ModelSpec) -> None:
        self._name = spec.name
        self._root = Path(spec.root or ".").absolute()
        self._sizes: dict[str, int] = {}
        self._examples: dict[str, np.ndarray] = {}
        self._module: Any = None
        self._by_keyword = False

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return tuple(
            InputSpec(name=name, dtype=str(array.dtype), shape=_named_axes(array.shape, self._sizes))
            for name, array in self._examples.items()
        )

    @property
    def examples(self) -> Mapping[str, np.ndarray]:
        return self._examples

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of its free dimensions: the defaults of its parameters, then what it was called with."""
        if self._sizes:
            return self._sizes
        defaults = {name: kind.default for name, kind in self._parameters.items() if _is_size(kind.default)}
        return {BATCH: 1, **defaults} if BATCH in self._parameters else defaults

    @property
    def sources(self) -> list[str]:
        """The files below the user's folder that were imported for it."""
        return files_below(self._root)

    @functools.cached_property
    def output_names(self) -> tuple[str, ...]:  # known once the module has run
        """Names of the outputs, where the module returns them in a dict."""
        import torch

        with torch.inference_mode():
            result = self._module.plain(*[torch.tensor(array) for array in self._examples.values()])
        return tuple(map(str, result)) if isinstance(result, Mapping) else ()

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        arguments = self._arguments(dims)
        with user_code(self._root):
            try:
                made = self._callable(**arguments)
            except (Exception, SystemExit) as exc:  # the user's code may raise anything
                raise ExportError(
                    f"{self._name} raised {type(exc).__name__}: {exc}", hint="--verbose shows its traceback"
                ) from exc
        module, examples = _taken_apart(self._name, made)
        self._sizes = {name: size for name, size in arguments.items() if name != SEED}
        self._examples, by_keyword = _named(self._name, module, examples)
        self._module = _adapted(module.eval().cpu(), tuple(self._examples) if by_keyword else ())
        return self._module

    def _arguments(self, dims: Mapping[str, int]) -> dict[str, int]:
        import torch

        parameters = self._parameters
        known = [name for name in parameters if name != SEED]
        for name in dims:
            if name not in known:
                raise UsageError(
                    f"{self._name} takes no '{name}'; it takes {', '.join(known) or 'nothing'}",
                    hint=f"give it a parameter '{name}: int', or leave the size out",
                )
        arguments = {**self.dims, **dims}
        for name, kind in parameters.items():
            if kind.default is kind.empty and name not in arguments and name != SEED:
                raise UsageError(f"{self._name} needs a size for '{name}'", hint=f"--dim {name}=SIZE")
        if SEED in parameters:
            arguments[SEED] = int(torch.initial_seed())
        return arguments

    @functools.cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        try:
            found = inspect.signature(self._callable).parameters
        except (TypeError, ValueError):
            return {}  # it was not written in Python
        passed = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return {
            name: kind
            for name, kind in found.items()
            if kind.kind in passed and (name == SEED or kind.default is kind.empty or _is_size(kind.default))
        }

    @functools.cached_property
    def _callable(self) -> Callable[..., Any]:
        place, _, attribute = self._name.partition(":")
        with user_code(self._root):
            value: Any = _imported(place, self._root)
            for part in attribute.split("."):
                if not hasattr(value, part):
                    near = difflib.get_close_matches(
                        part, [name for name in vars(value) if callable(getattr(value, name))]
                    )
                    raise UsageError(
                        f"{place} has no '{attribute}'" + (f"; did you mean '{near[0]}'?" if near else ""),
                        hint=f"it is {getattr(value, '__file__', place)}",
                    )
                value = getattr(value, part)
        if not callable(value):
            raise UsageError(f"{self._name} is {_described(value)}, not a callable", hint=CONTRACT)
        return value  # type: ignore[no-any-return]  # whatever the user's module holds under that name


def _imported(place: str, root: Path) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as exc:
        if exc.name and (place == exc.name or place.startswith(f"{exc.name}.")):
            raise UsageError(
                f"no module '{exc.name}' in {root} or among the installed packages",
                hint="give the command in the folder that holds it, or set PYTHONPATH",
            ) from exc
        raise ExportError(
            f"{place} cannot be imported: {exc}", hint="install what it needs beside harness' own packages"
        ) from exc
    except (Exception, SystemExit) as exc:  # the user's code may raise anything
        raise ExportError(
            f"{place} cannot be imported: {type(exc).__name__}: {exc}", hint="--verbose shows its traceback"
        ) from exc


def _taken_apart(name: str, made: object) -> tuple[Any, object]:
    import torch

    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise ExportError(f"{name} returned {_described(made)}", hint=CONTRACT)
    module, examples = made
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError(f"{name} returned a TorchScript module, which torch.export cannot take", hint=CONTRACT)
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{name} returned {_described(module)} where the module belongs", hint=CONTRACT)
    return module, examples


def _named(name: str, module: Any, examples: object) -> tuple[dict[str, np.ndarray], bool]:
    """Return the example inputs by name, and whether `forward` takes them by keyword."""
    import torch

    parameters = list(inspect.signature(module.forward).parameters.values())
    gathers = any(kind.kind is kind.VAR_POSITIONAL for kind in parameters)
    takes = [kind.name for kind in parameters if kind.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]
    if isinstance(examples, Mapping):
        anything = any(kind.kind is kind.VAR_KEYWORD for kind in parameters)
        unknown = [key for key in examples if key not in takes]
        if unknown and not anything:
            raise ExportError(
                f"{name} returned example inputs for {unknown}; forward takes {', '.join(takes) or 'none by name'}",
                hint="example inputs in a dict are given by keyword; in a tuple, by position",
            )
        values = dict(examples)
    else:
        listed = list(examples) if isinstance(examples, (tuple, list)) else [examples]
        if len(listed) > len(takes) and not gathers:
            raise ExportError(f"{name} returned {len(listed)} example inputs; forward takes {len(takes)}")
        names = [*takes, *(f"input_{index}" for index in range(len(takes), len(listed)))]
        values = dict(zip(names, listed, strict=False))
    if not values:
        raise ExportError(f"{name} returned no example inputs", hint=CONTRACT)
    arrays = {}
    for key, value in values.items():
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ExportError(
                f"{name} returned {_described(value)} as the example for '{key}', not a tensor", hint=CONTRACT
            )
        tensor = torch.as_tensor(value).detach().cpu()
        if tensor.dtype == torch.bfloat16 or tensor.is_complex():
            raise ExportError(f"the example for '{key}' is {str(tensor.dtype)[6:]}, which numpy or ONNX lacks")
        arrays[str(key)] = tensor.contiguous().numpy()
    return arrays, isinstance(examples, Mapping)


def _adapted(module: Any, keywords: tuple[str, ...]) -> Any:  # the module, whose class only torch knows
    """Let a module take its inputs by position and return a plain tuple where it returns a dict.

    Its class is extended where it stands. A module around it would put a prefix before the names of all its weights.
    """
    kind: Any = type(module)
    patched = module.__dict__.pop("forward", None)  # replaced on the object, as libraries for offloading do

    class Adapted(kind):
        def plain(self, *inputs: Any) -> Any:
            call = patched or functools.partial(kind.forward, self)
            return call(**dict(zip(keywords, inputs, strict=True))) if keywords else call(*inputs)

        def forward(self, *inputs: Any) -> Any:
            result = self.plain(*inputs)
            return tuple(result.values()) if isinstance(result, dict) else result

    Adapted.__name__, Adapted.__qualname__ = kind.__name__, kind.__qualname__
    module.__class__ = Adapted
    return module


def _named_axes(shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int | str, ...]:
    named: list[int | str] = list(shape)
    others = [name for name in sizes if name != BATCH]
    for axis, size in enumerate(shape):
        fitting = [name for name in others if sizes[name] == size]
        if axis == 0 and sizes.get(BATCH) == size:
            named[axis] = BATCH
        elif len(fitting) == 1:
            named[axis] = fitting[0]
    return tuple(named)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _described(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(type(item).__name__ for item in value[:4])
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
