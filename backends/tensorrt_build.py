"""ONNX file to plan: parsing, building, and turning what TensorRT says into errors that people read.

`trt` is the module of TensorRT 10, TensorRT 11 or TensorRT-RTX; all attributes used here exist in each.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import CompileError, HarnessError, OutOfMemory, UnavailableError, UnsupportedError

CUDA_OUT_OF_MEMORY = 2
"""Value of `cudaErrorMemoryAllocation`."""
_SHOWN = 5
_SOURCE_PLACE = re.compile(r"\.? In \w+ at /_src/[^)\s]+")
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|MEM_ALLOC_FAILED", re.IGNORECASE)
_CUDA_FAILED = re.compile(r"CUDA initialization failure with error: (\d+)")
_LEFT_OUT = re.compile(r"memory is insufficient|insufficient memory", re.IGNORECASE)
_NO_GRAPH = re.compile(r"not using CUDA graphs|CUDA graphs disabled", re.IGNORECASE)
_WARNINGS_KEPT = 2


class Messages:
    """What TensorRT logs: errors are kept for the next exception, as are telling warnings; all goes to `logging`."""

    def __init__(self, trt: Any) -> None:
        self._errors: list[str] = []
        self._warnings: deque[str] = deque(maxlen=_WARNINGS_KEPT)
        """Why a tactic was left out, once for each of possibly thousands, or why CUDA graphs are not used."""
        self.logger = _collector(trt, self._errors, self._warnings)
        """The `ILogger` that builders and runtimes are made with."""

    def take(self) -> list[str]:
        """Return the errors since the last call, without source places and repetition, then the warnings."""
        errors = list(dict.fromkeys(_SOURCE_PLACE.sub("", text).strip() for text in self._errors))
        # Without a driver this follows every other error and explains none of them.
        errors = [text for text in errors if "checkMacros.cpp::catchCudaError" not in text] or errors
        warnings = list(dict.fromkeys(self._warnings))
        self._errors.clear()
        self._warnings.clear()
        return errors + warnings

    def no_graph(self) -> str | None:
        """Return what was logged of CUDA graphs that are not used, or None."""
        return next((text for text in self._warnings if _NO_GRAPH.search(text)), None)


@functools.cache
def messages(trt: Any) -> Messages:
    """Return the process' one collector for a module: a second logger would be ignored by TensorRT."""
    return Messages(trt)


def _collector(trt: Any, errors: list[str], warnings: deque[str]) -> Any:
    log = logging.getLogger(f"harness.{trt.__name__}")
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.INFO,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class Collector(trt.ILogger):  # type: ignore[misc]  # the base belongs to the module chosen at run time
        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            log.log(level, "%s", message)
            if level == logging.ERROR:
                errors.append(message)
            elif _NO_GRAPH.search(message) or _LEFT_OUT.search(message):
                warnings.append(message)

    return Collector()


def monitor(trt: Any, report: Callable[[str, int | None, int | None], None]) -> Any:
    """Return an `IProgressMonitor` that reports each step; its `failure` is what `report` raised, if anything.

    Phases lie within one another. The steps done and the steps in all are those of the outermost, the only ones that
    never start again; the text names the innermost, where the time goes.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._open: dict[str, tuple[int, int]] = {}
            """Phase -> steps done and steps in all, the outermost first."""

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._open[phase] = (0, steps)
            self._report()

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._open:
                self._open[phase] = (step + 1, self._open[phase][1])
            return self._report()

        def phase_finish(self, phase: str) -> None:
            self._open.pop(phase, None)

        def _report(self) -> bool:
            # An exception that leaves a callback ends the process; returning False cancels the build instead.
            try:
                if self._open:
                    outermost, innermost = next(iter(self._open)), next(reversed(self._open))
                    done, total = self._open[innermost]
                    text = innermost if innermost == outermost else f"{innermost} {done}/{total}"
                    report(text, *self._open[outermost])
            except BaseException as exc:
                self.failure = self.failure or exc
            return self.failure is None

    return Monitor()


class Build:
    """One network on its way from an ONNX file to a plan."""

    def __init__(self, trt: Any, case: str, threads: int) -> None:
        """Make an empty network.

        `case` begins every error, such as `tensorrt cannot compile 'resnet50' (fp32, sm_89)`.

        Raises:
            UnavailableError: TensorRT cannot be initialised on this machine.
            OutOfMemory: The device has not enough memory left for that.
        """
        self._trt = trt
        self._case = case
        self._messages = messages(trt)
        self._messages.take()
        try:
            self._builder = trt.Builder(self._messages.logger)
        except TypeError as exc:  # pybind11: the factory returned a null pointer
            reason = "; ".join(self._messages.take()) or str(exc)
            code = _CUDA_FAILED.search(reason)
            kind = OutOfMemory if code and int(code[1]) == CUDA_OUT_OF_MEMORY else UnavailableError
            raise kind(
                f"{case}: TensorRT cannot be initialised: {reason}", hint="see what nvidia-smi says of the device"
            ) from exc
        self._builder.max_threads = threads
        # Version 10 needs the flag to keep the ONNX file's own precision; from 11 on there is nothing else.
        strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(strongly_typed)
        self.config = self._builder.create_builder_config()
        # The inspector can then say the data types of layers. By itself this would slow every enqueue down, so that
        # `EngineSession` takes what is said while running back to the default.
        self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED

    @property
    def network_layers(self) -> int:
        """Layers of the parsed network, before any fusion."""
        return int(self._network.num_layers)

    def parse(self, onnx_path: Path) -> None:
        """Read the ONNX file; weights beside it are found by their place.

        Raises:
            UnsupportedError: It uses operators that TensorRT lacks; the message names operators and nodes.
            CompileError: It is damaged or no valid model.
        """
        parser = self._trt.OnnxParser(self._network, self._messages.logger)
        if not parser.parse_from_file(str(onnx_path)):
            raise parse_failure(self._case, [parser.get_error(index) for index in range(parser.num_errors)])
        if not self._network.num_outputs:  # an empty file parses without an error
            raise CompileError(
                f"{self._case}: {onnx_path.name} has no outputs", hint="export it again: harness cache clear --exports"
            )

    def set_profile(self, ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Say which shapes the engine must take: input -> its smallest and its largest. It is tuned for the largest.

        Raises:
            UnsupportedError: An input's values, and not only its shape, decide over shapes inside the network.
            CompileError: The network does not leave free what the ranges do, or TensorRT refused them.
        """
        profile = self._builder.create_optimization_profile()
        for tensor in (self._network.get_input(index) for index in range(self._network.num_inputs)):
            if tensor.is_shape_tensor:
                raise UnsupportedError(f"{self._case}: shapes depend on the values of '{tensor.name}'")
            smallest, largest = ranges[tensor.name]
            profile.set_shape(tensor.name, smallest, largest, largest)
        if not profile or self.config.add_optimization_profile(profile) < 0:
            raise CompileError(f"{self._case}: its range of shapes was refused: {self._reasons()}")

    def limit_workspace(self, nbytes: int) -> None:
        """Cap the scratch memory that one layer may use.

        Raises:
            CompileError: TensorRT refused the value.
        """
        pool = self._trt.MemoryPoolType.WORKSPACE
        self.config.set_memory_pool_limit(pool, nbytes)
        if self.config.get_memory_pool_limit(pool) != nbytes:
            raise CompileError(f"{self._case}: a workspace of {nbytes} bytes was refused: {self._reasons()}")

    def plan(self, report: Callable[[str, int | None, int | None], None]) -> Any:
        """Build and return the plan: a buffer of bytes with `nbytes`.

        Raises:
            UnsupportedError: The target lacks an operation.
            OutOfMemory: Device memory ran out.
            CompileError: The build failed.
        """
        watch = monitor(self._trt, report)
        self.config.progress_monitor = watch
        plan = self._builder.build_serialized_network(self._network, self.config)
        if watch.failure is not None:
            raise watch.failure
        if plan is None:
            raise build_failure(self._case, self._messages.take())
        return plan

    def _reasons(self) -> str:
        return "; ".join(self._messages.take()) or "TensorRT gave no reason"


def parse_failure(case: str, errors: Iterable[Any]) -> HarnessError:
    """Return the error for what the ONNX parser reported: unsupported operators first, then anything else.

    `errors` are `trt.ParserError` objects.
    """
    unsupported: list[str] = []
    others: list[str] = []
    damaged = False
    for error in errors:
        where = f"'{error.node_operator()}' at {error.node_name() or f'node {error.node()}'}"
        why = error.desc().strip()
        # Of an operator without a converter the parser says that no plugin has its name.
        if "Plugin not found" in why:
            unsupported.append(where)
        elif error.code().name.startswith("UNSUPPORTED"):
            unsupported.append(where if why in ("", "false") else f"{where} ({_tidy(why)})")
        elif error.node() < 0:  # the parser did not get as far as a node
            damaged = True
            others.append(_tidy(why))
        else:
            others.append(f"{where}: {_tidy(why)}")
    if unsupported:
        return UnsupportedError(
            f"{case}: no converter for {_some(unsupported)}",
            hint="leave this backend out, or change the model so that it does not use the operator",
        )
    return CompileError(
        f"{case}: the ONNX file cannot be parsed: {_some(others) or 'TensorRT gave no reason'}",
        hint="export it again: harness cache clear --exports" if damaged else None,
    )


def build_failure(case: str, errors: list[str]) -> HarnessError:
    """Return the error for a build that gave no plan, from what was logged."""
    text = "; ".join(errors) or "TensorRT gave no reason"
    message = f"{case}: {text}"
    if "Cannot compile operation" in text and "not supported" in text:
        return UnsupportedError(message, hint="choose another target or precision")
    if "workspace limit" in text:
        return CompileError(message, hint="raise workspace_mb, or leave it out")
    if out_of_memory(text) or ("any implementation" in text and _LEFT_OUT.search(text)):
        return OutOfMemory(message, hint="free device memory, or lower workspace_mb or --batch")
    return CompileError(message)


def out_of_memory(text: str) -> bool:
    """Return whether what TensorRT logged says that memory ran out."""
    return bool(_OUT_OF_MEMORY.search(text))


def _tidy(text: str) -> str:
    lines = [_SOURCE_PLACE.sub("", line).strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line and "catchCudaError" not in line)


def _some(items: list[str]) -> str:
    unique = list(dict.fromkeys(items))
    more = f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
    return ", ".join(unique[:_SHOWN]) + more
