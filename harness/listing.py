"""What there is to choose from, behind `harness backends` and `harness models`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from tabulate import tabulate

from harness import environment, protocol, registry
from harness.api import ReferenceModel
from harness.errors import HarnessError, WorkerCrashed
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from harness.tabular import fitted

PROBE_TIMEOUT_S = 120.0


def list_backends(name: str | None, *, as_json: bool) -> None:
    """Carry out `harness backends`: probe each backend in a process of its own."""
    names = [name] if name else registry.backend_names()
    rows = probe_all(names)
    if as_json:
        click.echo(json.dumps({each: _backend_facts(each, probed) for each, probed in rows}, indent=2))
        return
    table = [
        (
            each,
            "yes" if probed.available else "no",
            ", ".join(f"{library} {version}" for library, version in probed.versions.items()) or "-",
            ", ".join(probed.devices) or "-",
            ", ".join(registry.backend(each).capabilities.compile_targets) or "-",
            registry.backend(each).summary,
        )
        for each, probed in rows
    ]
    heads = ["backend", "usable", "versions", "devices", "builds for", "what"]
    click.echo(fitted(table, heads, prose=["versions", "builds for", "what"]))
    for each, probed in rows:
        if not probed.available:
            click.echo(f"\n{each}: {probed.reason}")
            if probed.hint:
                click.echo(f"  hint: {probed.hint}")
    if name:
        click.echo(f"\nOptions, as in --backends {name}:key=value,key=value\n")
        click.echo(_options(registry.backend(name).Options))


def probe_all(names: Sequence[str]) -> list[tuple[str, protocol.Probed]]:
    """Return which of these backends can be used here, asking each in a process of its own."""
    for each in names:
        registry.backend(each)
    with tempfile.TemporaryDirectory(prefix="harness-probe-") as logs:
        launcher = Launcher(
            logs=Path(logs), threads=1, memory_limit_bytes=environment.memory_bytes(), timeout_s=PROBE_TIMEOUT_S
        )
        with launcher:
            return [(each, probe(each, launcher)) for each in names]


def probe(name: str, launcher: Launcher) -> protocol.Probed:
    try:
        with launcher.start(name) as worker:
            probed = worker.call(protocol.Probe(backend=name), protocol.Probed, timeout_s=PROBE_TIMEOUT_S)
        return msgspec.structs.replace(probed, hint=probed.hint or registry.install_hint(name))
    except WorkerCrashed as exc:
        return protocol.Probed(
            available=False,
            reason=f"its probe crashed: {exc.message}\n{worker.log_tail()}".strip(),
            hint=registry.install_hint(name),
        )
    except HarnessError as exc:
        return protocol.Probed(available=False, reason=exc.message, hint=exc.hint or registry.install_hint(name))


def _backend_facts(name: str, probed: protocol.Probed) -> dict[str, Any]:
    kind = registry.backend(name)
    return {
        "summary": kind.summary,
        "install": registry.install_hint(name),
        "capabilities": msgspec.to_builtins(kind.capabilities),
        "options": [
            dict(zip(("name", "type", "default", "what"), row, strict=True)) for row in option_rows(kind.Options)
        ],
        **msgspec.to_builtins(probed),
    }


def option_rows(options: type[msgspec.Struct]) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and description of each option."""
    described = msgspec.json.schema(options)["$defs"][options.__name__]["properties"]
    defaults = msgspec.to_builtins(options())
    return [
        (
            name,
            _type_text(facts),
            json.dumps(defaults[name]) if defaults[name] is not None else "-",
            _description(facts),
        )
        for name, facts in described.items()
    ]


def _options(options: type[msgspec.Struct]) -> str:
    return fitted(option_rows(options), ["option", "type", "default", "what"], prose=["type", "what"])


def _type_text(facts: dict[str, Any]) -> str:
    kinds = facts.get("anyOf", [facts])
    words = ["|".join(map(str, kind["enum"])) if "enum" in kind else str(kind["type"]) for kind in kinds]
    return " or ".join(word for word in words if word not in ("null", "None"))


def _description(facts: dict[str, Any]) -> str:
    return str(
        facts.get("description") or next((k["description"] for k in facts.get("anyOf", []) if "description" in k), "")
    )


def list_models(*, as_json: bool) -> None:
    """Carry out `harness models`."""
    models = [_reference(name) for name in registry.model_names()]
    if as_json:
        suites = {name: list(registry.suite(name)) for name in (*registry.SUITES, registry.WHOLE)}
        click.echo(json.dumps({"models": [_model_facts(model) for model in models], "suites": suites}, indent=2))
        return
    table = [
        (
            model.name,
            f"{model.parameters / 1e6:.2f}",
            f"{model.gflop:.3g}",
            f"{model.memory_gib:.1f}",
            _inputs(model),
            " ".join(model.tags),
            model.public.licence if model.public else "-",
        )
        for model in models
    ]
    heads = ["model", "M parameters", "GFLOP", "GiB to export", "inputs", "tags", "licence of public weights"]
    click.echo(fitted(table, heads, prose=["inputs", "tags", "licence of public weights"], spare=["inputs"]))
    click.echo("\nInputs, settings and public weights of one: harness models NAME")
    click.echo("\nFor --suite\n")
    chosen = [*((key, " ".join(items)) for key, items in registry.SUITES.items()), (registry.WHOLE, "all but quick")]
    click.echo(fitted(chosen, ["suite", "models"], prose=["models"]))


def show_model(name: str, *, as_json: bool) -> None:
    """Carry out `harness models NAME`.

    Raises:
        UsageError: No model has this name.
    """
    model = _reference(name)
    if as_json:
        click.echo(json.dumps(_model_facts(model), indent=2))
        return
    public = model.public
    facts = [
        ("parameters", f"{model.parameters:,}"),
        ("GFLOP", f"{model.gflop:g}, one forward pass at the default sizes"),
        ("memory", f"{model.memory_gib:g} GiB to export"),
        ("inputs", _inputs(model)),
        ("outputs", ", ".join(model.output_names[:6]) + (" ..." if len(model.output_names) > 6 else "")),
        ("free dimensions", ", ".join(f"{key}={size}" for key, size in model.dims.items())),
        ("tags", " ".join(model.tags)),
        ("public weights", f"{public.repository} {public.file}: {public.licence}" if public else "none"),
        ("suites", " ".join(key for key, items in registry.SUITES.items() if _in(name, items)) or "none"),
    ]
    click.echo(f"{name}: {model.summary}\n")
    click.echo(tabulate(facts, tablefmt="plain"))
    if option_rows(model.Options):
        click.echo(f"\nOptions, as in --model {name}:key=value,key=value\n")
        click.echo(_options(model.Options))


def _reference(name: str) -> ReferenceModel:
    model = registry.model(ModelSpec(name=name))
    assert isinstance(model, ReferenceModel)
    return model


def _in(name: str, items: tuple[str, ...]) -> bool:
    return any(item.partition(":")[0] == name for item in items)


def _inputs(model: ReferenceModel) -> str:
    texts = [f"{spec.name} {spec.dtype}[{','.join(map(str, spec.shape))}]" for spec in model.inputs]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _model_facts(model: ReferenceModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "what": model.summary,
        "parameters": model.parameters,
        "gflop": model.gflop,
        "memory_gib": model.memory_gib,
        "inputs": [msgspec.to_builtins(spec) for spec in model.inputs],
        "outputs": list(model.output_names),
        "dims": dict(model.dims),
        "task": model.task,
        "tags": list(model.tags),
        "public_weights": msgspec.to_builtins(model.public),
        "options": [
            dict(zip(("name", "type", "default", "what"), row, strict=True)) for row in option_rows(model.Options)
        ],
    }
