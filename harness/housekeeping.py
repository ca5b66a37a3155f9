"""What `harness doctor` and `harness cache` do."""

from __future__ import annotations

import json
import shutil

import click
import msgspec
from tabulate import tabulate

from harness import doctor
from harness.engines import any_in_use, delete_unless_in_use, engines_root
from harness.environments.managing import clear_all
from harness.errors import StoreError, UsageError
from harness.paths import cache_root, folder_bytes
from harness.tabular import fitted


def run_doctor(*, as_json: bool) -> None:
    """Carry out `harness doctor`."""
    findings = doctor.examine()
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(finding) for finding in findings], indent=2))
        return
    marks = {"good": "ok", "note": "--", "warn": "!!"}
    click.echo(
        fitted(
            [(marks[f.level], f.what, f.figure, f.advice) for f in findings],
            ["", "what", "found", "advice"],
            prose=["found", "advice"],
        )
    )
    bad = sum(finding.level == "warn" for finding in findings)
    click.echo(f"\n{bad} thing(s) here make numbers noisier than they need be." if bad else "\nNothing here disturbs.")


def run_cache(action: str, parts: list[str]) -> None:
    """Carry out `harness cache`."""
    root = cache_root()
    if action == "clear":
        if set(parts) != {"engines"} and any_in_use():
            raise UsageError(
                "a comparison is running and needs what is in the cache", hint="wait for it, or clear --engines only"
            )
        kept = []
        for part in parts:
            if part == "engines":
                kept += [f"{count} engine(s)"] if (count := _clear_engines()) else []
            elif part == "environments":
                kept += [f"{count} environment(s)"] if (count := clear_all()) else []
            else:
                shutil.rmtree(root / part, ignore_errors=True)
                if (root / part).exists():
                    raise StoreError(f"{root / part} cannot be deleted", hint="it may be in use, or not yours")
        shutil.rmtree(root / "logs", ignore_errors=True)
        click.echo(f"cleared {', '.join(parts)} in {root}" + (f"; kept {' and '.join(kept)} in use" if kept else ""))
        return
    click.echo(
        tabulate([(part, f"{folder_bytes(root / part) / 2**20:.1f}") for part in parts], headers=[str(root), "MiB"])
    )


def _clear_engines() -> int:
    folders = [path for path in engines_root().glob("*/*") if path.is_dir()]
    kept = sum(not delete_unless_in_use(path) for path in folders)
    for key in engines_root().glob("*"):
        if key.is_dir() and not any(key.iterdir()):
            key.rmdir()
    return kept
