"""Defaults from `harness.toml`: one table a command, one key an option, so that a project need not repeat itself.

    [compare]
    model = "resnet50"
    backends = ["eager", "onnxruntime", "tvm:trials=64"]
    threads = 2

What the command line says comes first. `[store]` is for all commands that use the history:

    [store]
    url = "postgresql://ci@db.example.org/harness"

`[suite.NAME]` is what `harness run NAME` compares, see `harness.suite_tables`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
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
NO_TABLE = {"run", "init"}
"""Commands that take what they do from other tables."""
STORE = "store"
URL = "url"
SUITE = "suite"


def read(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Return the file's values as click's default map: command -> parameter -> value.

    Raises:
        StoreError: The file cannot be read or is not TOML.
        UsageError: It names an unknown command or option, or a value does not fit; the message says where.
    """
    tables = parse(path)
    store = _store(path, tables.pop(STORE, None))
    suites = tables.pop(SUITE, None)
    known = {name: command for name, command in commands.items() if name not in NO_TABLE}
    for name in tables:
        if name not in known:
            raise _located(path, registry.unknown("table", name, [*known, STORE, SUITE]))
    defaults = {name: table(path, name, values, known[name]) for name, values in tables.items()}
    if suites is not None:
        from harness.suite_tables import parse_suites

        parse_suites(path, suites, commands)
    return _with_store(defaults, store, known) if store is not None else defaults


def parse(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        StoreError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise StoreError(f"{path} is not valid TOML: {exc}") from exc


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


def table(
    path: Path,
    name: str,
    values: object,
    command: click.Command,
    *,
    renamed: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the values of a table as click takes them: name of a parameter -> value.

    Args:
        name: Of the table, for messages.
        command: Whose options are its keys.
        renamed: Key -> the option for which it stands here.
        others: Keys that the caller has taken out, as suggestions.

    Raises:
        UsageError: An unknown key, or a value that does not fit.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {name} must be a table: [{name}] and its keys below it")
    options = {option: each for each in command.params if (option := _key(each)) is not None}
    known = {key: options.pop(option) for key, option in (renamed or {}).items()} | options
    out: dict[str, Any] = {}
    for key, value in values.items():
        parameter = known.get(key.replace("_", "-"))
        if parameter is None:
            raise _located(path, registry.unknown(f"key of [{name}]", key, [*known, *others]))
        try:
            out[str(parameter.name)] = _fitting(parameter, value, command)
        except click.BadParameter as exc:
            raise UsageError(f"{path}: [{name}] {key}: {exc.message}") from exc
    return out


def _fitting(parameter: click.Parameter, value: object, command: click.Command) -> object:
    """Return a value as click takes it.

    Raises:
        click.BadParameter: It does not fit.
    """
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    listed = value if isinstance(value, list) else [value]
    for one in listed:
        if isinstance(one, (dict, list)) or (isinstance(one, bool) and not is_flag):
            raise click.BadParameter(f"{_toml(one)} is no value for it")
        if isinstance(parameter.type, click.types.StringParamType) and not isinstance(one, str):
            raise click.BadParameter(f'{_toml(one)} is not a text; write "{_toml(one)}"')
    if parameter.multiple:
        given: object = listed
    elif isinstance(value, list):  # as on the command line, where commas stand between
        given = ",".join(map(str, value))
    else:
        given = value
    parameter.type_cast_value(click.Context(command), given)
    return given


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "a table" if isinstance(value, dict) else str(value)


def _key(parameter: click.Parameter) -> str | None:
    longest = max(parameter.opts, key=len)
    return longest[2:] if longest.startswith("--") and parameter.name not in NOT_IN_FILE else None


def _located(path: Path, error: UsageError) -> UsageError:
    return UsageError(f"{path}: {error.message}", hint=error.hint)
