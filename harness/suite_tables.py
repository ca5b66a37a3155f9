"""Suites of a project: `[suite.NAME]` tables of harness.toml, each what `harness run NAME` compares.

    [suite.nightly]
    models = ["resnet50", "bert-base:sequence=512"]
    backends = ["eager", "onnxruntime", "tvm"]
    precision = ["fp32", "fp16"]
    launches = 5

    [suite.nightly.options]
    tvm = { trials = 64, tuning_seconds = 60 }

    [suite.nightly.check]
    max_slowdown = "5%"

Beside `models`, `options` and `check` it takes what `[compare]` takes, and `[compare]` holds where it says nothing.
`check` takes what `[check]` takes: with it, a run of the suite is held against the baseline once it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from harness import registry
from harness.config import SUITE, parse, read, table
from harness.errors import UsageError

MODELS, OPTIONS, CHECK = "models", "options", "check"
OVERRULES = {
    "models": ("suite",),
    "suite": ("models",),
    "launches": ("quick",),
    "quick": ("launches",),
    "devices": ("target", "card"),
    "target": ("devices", "card", "parallel", "baseline"),
    "card": ("devices", "target", "parallel", "baseline"),
}
"""What a suite says -> what `[compare]` says against it, and is then not meant. By names of parameters."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One table, its values as click takes them: name of a parameter -> value."""

    name: str
    where: str
    """File and table, for messages."""
    compare: dict[str, Any]
    check: dict[str, Any] | None = None
    """None: the suite has no gate."""
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the file says for all suites: command -> parameter -> value."""

    def of_compare(self) -> dict[str, Any]:
        """Return the values for `harness compare`, those for all suites included."""
        overruled = {other for name in self.compare for other in OVERRULES.get(name, ())}
        common = self.defaults.get("compare", {})
        return {name: value for name, value in common.items() if name not in overruled} | self.compare

    def of_check(self) -> dict[str, Any]:
        """Return the values for `harness check`, those for all suites included."""
        return self.defaults.get(CHECK, {}) | (self.check or {})


def read_suites(path: Path, commands: Mapping[str, click.Command]) -> dict[str, Suite]:
    """Return the suites of a file, with what it says for all commands.

    Raises:
        StoreError: The file cannot be read or is not TOML.
        UsageError: As `parse_suites()`.
    """
    found = parse_suites(path, parse(path).get(SUITE, {}), commands)
    defaults = read(path, commands)
    return {name: replace(suite, defaults=defaults) for name, suite in found.items()}


def parse_suites(path: Path, tables: object, commands: Mapping[str, click.Command]) -> dict[str, Suite]:
    """Return the suites of a file: name -> suite.

    Args:
        tables: What stands below `suite` in the file.

    Raises:
        UsageError: An unknown key or a value that does not fit; the message names file, table and key.
    """
    if not isinstance(tables, dict):
        raise UsageError(f"{path}: {SUITE} must hold tables: [{SUITE}.NAME] and its keys below it")
    return {name: _suite(path, name, values, commands) for name, values in tables.items()}


def _suite(path: Path, name: str, values: object, commands: Mapping[str, click.Command]) -> Suite:
    title = f"{SUITE}.{name}"
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {SUITE}.{name} must be a table: [{title}] and its keys below it")
    own = dict(values)
    options, check = own.pop(OPTIONS, None), own.pop(CHECK, None)
    compare = table(path, title, own, commands["compare"], renamed={MODELS: "model"}, others=(OPTIONS, CHECK))
    if not {"models", "suite"} & compare.keys():
        raise UsageError(f"{path}: [{title}] says not what to compare", hint=f'{MODELS} = ["resnet50"]')
    if options is not None:
        compare["backends"] = _with_options(path, title, compare.get("backends", []), options)
    gates = None if check is None else table(path, f"{title}.{CHECK}", check, commands[CHECK])
    return Suite(name=name, where=f"{path}: [{title}]", compare=compare, check=gates)


def _with_options(path: Path, title: str, backends: list[str], options: object) -> list[str]:
    """Return the backends with their options, in the grammar of `--backends`."""
    where = f"{path}: [{title}.{OPTIONS}]"
    if not isinstance(options, dict) or not all(isinstance(values, dict) for values in options.values()):
        raise UsageError(f"{where} holds a table a backend", hint=f"[{title}.{OPTIONS}.NAME] and its options below it")
    tokens = [token.strip() for text in backends for token in text.split(",") if token.strip()]
    # A token with "=" before any ":" is an option of the backend to its left.
    named = [token.partition(":")[0] for token in tokens if "=" not in token.partition(":")[0]]
    for backend in options:
        if backend not in named:
            error = registry.unknown(f"backend of [{title}]", backend, named)
            raise UsageError(f"{where}: {error.message}")
    out: list[str] = []
    for token in tokens:
        head = token.partition(":")[0]
        if "=" in head and out:
            out[-1] += f",{token}"
            continue
        given = ",".join(f"{key}={_text(where, head, key, value)}" for key, value in options.get(head, {}).items())
        out.append(f"{token}{',' if ':' in token else ':'}{given}" if given else token)
    return out


def _text(where: str, backend: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)) and "," not in str(value):
        return str(value)
    raise UsageError(f"{where} {backend}.{key}: {value!r} is neither a number, true, false, nor a text without commas")
