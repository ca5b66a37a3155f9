"""Defaults from `harness.toml`: one table a command, one key an option, so that a project need not repeat itself.

    [compare]
    model = "resnet50"
    backends = ["eager", "onnxruntime", "tvm:trials=64"]
    threads = 2

What the command line says comes first. `[store]` is for all commands that use the history:

    [store]
    url = "postgresql://ci@db.example.org/harness"
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
STORE = "store"
URL = "url"


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
    store = _store(path, tables.pop(STORE, None))
    defaults = {name: _table(path, name, values, commands) for name, values in tables.items()}
    return _with_store(defaults, store, commands) if store is not None else defaults


def _store(path: Path, values: object) -> str | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {STORE} must be a table: [{STORE}] and its keys below it")
    for key in values:
        if key != URL:
            raise _located(path, registry.unknown(f"key of [{STORE}]", key, [URL]))
    url = values.get(URL)
    if url is not None and not isinstance(url, str):
        raise UsageError(f"{path}: [{STORE}] {URL}: {url!r} is not a path or a URL")
    return url


def _with_store(defaults: dict[str, Any], store: str, commands: Mapping[str, click.Command]) -> dict[str, Any]:
    """Return the defaults with the store's place as that of every command that has such an option."""
    out = dict(defaults)
    for name, command in commands.items():
        if any(parameter.name == STORE for parameter in command.params):
            out[name] = {STORE: store, **out.get(name, {})}
        if isinstance(command, click.Group):
            out[name] = _with_store(out.get(name, {}), store, command.commands)
    return out


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
