"""What `harness init` does: a harness.toml that says what can stand in it, filled with what works on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import click
import msgspec

from harness import registry
from harness.commands import DEFAULT_MODEL
from harness.config import FILE
from harness.errors import UsageError
from harness.history.location import VARIABLE, locate
from harness.listing import probe_all
from harness.paths import write_atomically
from harness.plan import ALL
from harness.progress import Narrator
from harness.protocol import Probed

HEAD = """\
# What harness measures here. A key is an option of a command without its dashes: harness compare --help
# The command line comes first, then a suite, then [compare].
"""
STORE = """\
# Where the history of all runs is: a file, or postgresql://USER@HOST/NAME. {variable} comes before it.
# [store]
# url = "{store}"
"""
COMPARE = """\
# For harness compare, and for every suite.
[compare]
# threads = 4
# budget = 180
"""
SUITE = """\
# harness run default
[suite.default]
models = ["{model}"]          # harness models; a path of your own: "model.onnx", "package.module:factory"
backends = [{backends}]
{absent}# precision = ["fp32", "fp16"]
# device = "cpu"
# batch = [1, 8]
# launches = 5
"""
OPTIONS = """\
# Options of a backend, here as they are anyway; harness backends NAME lists them all.
# [suite.default.options]
"""
SHOWN, SIMPLE = 2, (str, int, float)
"""Options of a backend that are shown as an example."""
CHECK = """\
# Gates. Once harness baseline set last has named a run, harness run default fails with 1 where a case became worse.
[suite.default.check]
max_slowdown = "5%"
max_compile = "20%"
max_memory = "10%"
max_size = "10%"
max_drift = "10x"
"""


def write_config(*, force: bool, quiet: bool) -> None:
    """Carry out `harness init`.

    Raises:
        UsageError: There is a harness.toml already, or a folder of that name.
        StoreError: It cannot be written; one that was there stays.
    """
    if FILE.is_dir():
        raise UsageError(f"{FILE} is a folder")
    if FILE.exists() and not force:
        raise UsageError(f"{FILE} is there already, and stays as it is", hint="harness init --force replaces it")
    with Narrator(quiet=quiet) as narrator:
        narrator.doing("looking which backends work here")
        probed = probe_all(registry.backend_names())
    write_atomically(FILE.absolute(), config_text(probed).encode("utf-8"))
    usable = [name for name, one in probed if one.devices]
    click.echo(f"wrote {FILE}: suite default with {', '.join(usable) or 'all backends, though none works here yet'}")
    click.echo("next: harness run default")


def config_text(probed: Iterable[tuple[str, Probed]]) -> str:
    """Return the file for backends of which it is known whether they work here."""
    found = list(probed)
    usable = [name for name, one in found if one.devices]
    location = locate(None)
    parts = [
        HEAD,
        STORE.format(variable=VARIABLE, store=location.shown if location else ""),
        COMPARE,
        SUITE.format(
            model=DEFAULT_MODEL,
            backends=", ".join(f'"{name}"' for name in usable or [ALL]),
            absent="".join(f"# not among them: {line}\n" for line in _absent(found)),
        ),
        OPTIONS + "".join(f"# {line}\n" for line in _options(usable)),
        CHECK,
    ]
    return "\n".join(parts)


def _absent(found: Iterable[tuple[str, Probed]]) -> Iterator[str]:
    for name, one in found:
        if not one.available:
            yield f"{name}, {one.hint}" if one.hint else name
        elif not one.devices:
            yield f"{name}, it runs on none of this machine's devices; harness compare --target builds for others"


def _options(usable: Iterable[str]) -> Iterator[str]:
    """Yield a line of TOML a backend, with options that have a default."""
    for name in usable:
        defaults = msgspec.to_builtins(registry.backend(name).Options())
        shown = [f"{key} = {json.dumps(value)}" for key, value in defaults.items() if isinstance(value, SIMPLE)]
        if shown:
            yield f"{name} = {{ {', '.join(shown[:SHOWN])} }}"
