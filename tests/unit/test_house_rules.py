"""Rules of the house that no linter knows: one clock, no backend's name in the core, light imports, small modules."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import click
import pytest

from harness import registry
from harness.cli import SECTIONS, cli
from tests.support import ROOT

PACKAGES = ("harness", "backends", "models", "reports")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))
TESTS = sorted(path for path in (ROOT / "tests").glob("**/*.py"))
LINES_AT_MOST = 450

CLOCKS = {"perf_counter", "perf_counter_ns", "time", "time_ns", "monotonic", "monotonic_ns", "process_time"}
READS_A_CLOCK = {
    "harness/measure.py": "the one clock",
    "harness/launcher.py": "the deadline of a step that may hang: no duration comes of it",
    "backends/tvm_tuning.py": "the budget of a tuning that a user bounds in seconds: no duration comes of it",
}
NAMES_LIBRARIES = {
    "harness/registry.py": "the one list of backends",
    "harness/environment.py": "names of distributions whose versions every run records",
    "harness/precisions.py": "names of distributions that convert graphs",
}
FRAMEWORKS = {
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tvm",
    "tvm_ffi",
    "tensorrt",
    "tensorrt_rtx",
}
HEAVY = {"numpy", "scipy", "rich", "pandas"}
DATABASE = {"sqlalchemy", "alembic", "psycopg", "ruptures"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def clock_reads(tree: ast.Module) -> Iterator[int]:
    """Yield the line of each use of a clock of `time`, however it was imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            if node.attr in CLOCKS:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield node.lineno


def test_the_search_for_clocks_finds_them() -> None:
    assert list(clock_reads(ast.parse("import time\nx = time.time()\ny = time.monotonic()\ntime.sleep(1)"))) == [2, 3]
    assert list(clock_reads(ast.parse("from time import perf_counter"))) == [1]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_clock_outside_measure(path: Path) -> None:
    lines = list(clock_reads(tree_of(path)))
    if name_of(path) in READS_A_CLOCK:
        assert lines, f"{name_of(path)} reads no clock any more: take it off the list of exceptions"
    else:
        assert not lines, f"{name_of(path)} reads a clock in lines {lines}; harness/measure.py is the only place"


def literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every string of the code that is not a docstring, with its line."""
    texts = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", sorted((ROOT / "harness").glob("**/*.py")), ids=name_of)
def test_no_backend_by_name_in_the_core(path: Path) -> None:
    found = [(line, text) for line, text in literals(tree_of(path)) if text in registry.BACKENDS]
    if name_of(path) in NAMES_LIBRARIES:
        assert found, f"{name_of(path)} names no library any more: take it off the list of exceptions"
    else:
        assert not found, f"{name_of(path)} knows a backend by name: {found}"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, ROOT / "_harness_boot.py"], ids=name_of)
def test_module_has_a_docstring(path: Path) -> None:
    assert path.read_text() == "" or ast.get_docstring(tree_of(path)), f"{name_of(path)} does not say what it is for"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module_is_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_AT_MOST


def top_level_imports(tree: ast.Module) -> set[str]:
    """Return the packages that a module imports when it is imported itself."""
    found: set[str] = set()
    nodes: list[ast.stmt] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            nodes += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            nodes += [*node.body, *(line for handler in node.handlers for line in handler.body)]
        elif isinstance(node, ast.ClassDef):
            nodes += node.body
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_framework_at_the_top_of_a_module(path: Path) -> None:
    assert not top_level_imports(tree_of(path)) & FRAMEWORKS


@pytest.mark.parametrize("path", sorted((ROOT / "harness").glob("**/*.py")), ids=name_of)
def test_arrows_point_one_way(path: Path) -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree_of(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & {"backends", "models", "reports"}, "the core finds them through the registry only"


def imported_by(*arguments: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter imports for these arguments."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 10
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_neither_frameworks_nor_anything_heavy(arguments: list[str]) -> None:
    found = imported_by("-m", "harness", *arguments)
    assert "click" in found
    assert not found & (FRAMEWORKS | HEAVY | DATABASE)


def test_nothing_of_the_history_is_imported_while_measuring() -> None:
    found = imported_by("-c", "import harness.commands, harness.worker")
    assert "numpy" in found
    assert not found & DATABASE, "they take memory and time from what is being measured"


def test_every_registered_class_is_importable_without_its_framework() -> None:
    code = "\n".join(
        [
            "from harness import registry",
            "for name in registry.BACKENDS: registry.backend(name).capabilities",
            "from harness.modelspec import ModelSpec",
            "for name in registry.MODELS: registry.model(ModelSpec(name=name)).parameters",
            "for name in registry.REPORTS: registry.report(name).summary",
        ]
    )
    found = imported_by("-c", code)
    assert "backends" in found
    assert not found & FRAMEWORKS


def every_command(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield all commands with their names, those of groups too."""
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        if isinstance(command, click.Group):
            yield from every_command(command, f"{before}{name} ")


COMMANDS = list(every_command(cli))


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_has_an_example(name: str, command: click.Command) -> None:
    assert f"harness {name}" in (command.help or "")
    assert "Example" in (command.help or "")


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(parameter, id=f"{name} {parameter.opts[0]}")
        for name, command in COMMANDS
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ],
)
def test_every_option_has_a_help_text(option: click.Option) -> None:
    assert len((option.help or "").split()) >= 2


def test_every_command_of_an_example_parses() -> None:
    examples = [
        line.strip()
        for command in [cli, *(command for _, command in COMMANDS)]
        for line in (command.help or "").splitlines()
        if line.strip().startswith("harness ")
    ]
    assert len(examples) >= len(COMMANDS)
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        named = 2 if f"{words[0]} {words[1] if len(words) > 1 else ''}" in dict(COMMANDS) else 1
        command = dict(COMMANDS)[" ".join(words[:named])]
        command.make_context(words[0], words[named:])  # raises for an unknown option or a bad value


def test_every_package_is_shipped() -> None:
    shipped = ConfigParser()
    shipped.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in SOURCES}
    assert folders == set(shipped["options"]["packages"].split())


def test_help_lists_every_command_once() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(cli.commands)
