"""Defaults from `harness.toml`: one table a command, one key an option, so that a project need not repeat itself.

    [compare]
    model = "resnet50"
    backends = ["eager", "onnxruntime", "tvm:trials=64"]
    threads = 2

What the command line says comes first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness import registry
from harness.errors import StoreError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path("harness.toml")
"""Looked for in the working folder."""
NOT_IN_FILE = {"help", "resume", "verbose", "quiet", "as_json", "lock_clocks"}
"""What belongs to one call, not to a project; and what changes the machine is to be asked for each time."""


def read(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Return the file's values as click's default map: command -> parameter -> value.

    Raises:
        StoreError: The file cannot be read or is not TOML.
        UsageError: It names an unknown command or option, or a value does not fit; the message says where.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise StoreError(f"{path} is not valid TOML: {exc}") from exc
    return {name: _table(path, name, values, commands) for name, values in tables.items()}


def _table(path: Path, name: str, values: object, commands: Mapping[str, click.Command]) -> dict[str, Any]:
    if name not in commands:
        raise _located(path, registry.unknown("table", name, commands))
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {name} must be a table: [{name}] and its keys below it")
    command = commands[name]
    known = {option: each for each in command.params if (option := _key(each)) is not None}
    out: dict[str, Any] = {}
    for key, value in values.items():
        parameter = known.get(key.replace("_", "-"))
        if parameter is None:
            raise _located(path, registry.unknown(f"key of [{name}]", key, known))
        try:
            context = click.Context(command)
            listed = value if not parameter.multiple or isinstance(value, list) else [value]
            parameter.type_cast_value(context, listed)
        except click.BadParameter as exc:
            raise UsageError(f"{path}: [{name}] {key}: {exc.message}") from exc
        out[str(parameter.name)] = listed
    return out


def _key(parameter: click.Parameter) -> str | None:
    longest = max(parameter.opts, key=len)
    return longest[2:] if longest.startswith("--") and parameter.name not in NOT_IN_FILE else None


def _located(path: Path, error: UsageError) -> UsageError:
    return UsageError(f"{path}: {error.message}", hint=error.hint)
